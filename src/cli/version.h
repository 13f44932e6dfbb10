#pragma once

namespace peft::cli {

extern const char* const kVersion;  // "0.1.0", from CMakeLists.txt

}  // namespace peft::cli
