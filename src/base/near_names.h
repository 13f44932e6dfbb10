// "Did you mean": the names most like one that was not found.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft {

// Edits (insert, remove, replace) from one word to the other.
std::size_t edit_distance(std::string_view a, std::string_view b);

// Up to `count` of `names`, nearest first (edit distance, then alphabetical); those that share less than half
// of their characters with `wanted` are left out.
std::vector<std::string> near_names(std::string_view wanted, std::span<const std::string> names, std::size_t count = 3);

// For a hint about a path that does not exist: the near names of its folder, or what can be said about the folder.
std::string missing_file_hint(const std::string& path);

}  // namespace peft
