// Whether a folder may become the output: asked before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace peft::safetensors {

// The path without links and dots, so that beside it is really beside it. OUT_EXISTS for a link to nothing.
std::string output_path(const std::string& out);

// OUT_ALIAS when writing `out` would replace an input, the folder of one, or a file that is also an input.
void require_no_alias(const std::string& out, const std::vector<std::string>& inputs);

// OUT_EXISTS unless there is nothing, an empty folder, or (overwrite) a folder other than the current one.
void require_free(const std::string& out, bool overwrite);

// OUT_SPACE when the file system of the folder `parent` has less than `bytes` free.
void require_space(const std::string& parent, std::uint64_t bytes);

bool is_present(const std::string& path);  // links count, wherever they lead
bool is_empty_folder(const std::string& path);
// At most `most` of a folder's names, sorted. Absent when it cannot be read.
std::optional<std::vector<std::string>> names_in(const std::string& folder, std::size_t most = SIZE_MAX);

}  // namespace peft::safetensors
