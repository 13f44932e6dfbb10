// Recognises files of other formats by their first bytes.
#pragma once

#include <string>
#include <string_view>

namespace peft::safetensors {

// Throws NOT_ST or E_PICKLE when `start` (the first 512 bytes, or all of a shorter file) is that of a known other
// format; returns otherwise. It is called only for files that have been refused already.
void refuse_foreign_format(std::string_view start, const std::string& path);

}  // namespace peft::safetensors
