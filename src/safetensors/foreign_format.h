// What a file that is not safetensors may be, told by its first bytes.
#pragma once

#include <string>
#include <string_view>

#include "peft/error.h"

namespace peft::safetensors {

// Throws NOT_ST or E_PICKLE when `start` (the first 512 bytes, or all of a shorter file) is that of a known other
// format; returns otherwise. Only asked about files that have been refused already.
void refuse_foreign_format(std::string_view start, const std::string& path);

// Throws `code` when the text of a config or an index is a Git LFS pointer: a clone without LFS leaves it in the file's
// place.
void refuse_lfs_pointer(std::string_view text, const std::string& path, ErrorCode code);

}  // namespace peft::safetensors
