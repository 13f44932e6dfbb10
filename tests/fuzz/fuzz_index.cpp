// parse_shard_index on any bytes: what is accepted names only plain files of the same folder, each tensor once.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "fuzz/naive_header.h"
#include "peft/error.h"
#include "safetensors/reading/shard_index.h"

namespace {

std::string check_names(const peft::safetensors::ShardIndex& index) {
  for (const auto& [tensor, file] : index.files) {
    if (file.find_first_of(std::string_view("/\\:\0", 4)) != std::string::npos || file.starts_with('.') ||
        file.size() > 255)
      return "a path: " + file;
    if (!file.ends_with(".safetensors")) return "another kind of file: " + file;
  }
  const auto twice = [](const auto& a, const auto& b) { return a.first == b.first; };
  if (std::adjacent_find(index.files.begin(), index.files.end(), twice) != index.files.end()) return "a tensor twice";
  return std::is_sorted(index.files.begin(), index.files.end()) ? "" : "not sorted";
}

// The same map as another library reads it.
std::string compare(const peft::safetensors::ShardIndex& index, std::string_view text) {
  const auto root = peft::naive::parse_object(text);
  if (!root) return "accepted, but the naive reader refuses it";
  const auto& map = (*root)["weight_map"];
  if (map.size() != index.files.size()) return "another number of tensors";
  for (const auto& [tensor, file] : index.files) {
    if (!map.contains(tensor) || map[tensor] != file) return "another file for " + tensor;
  }
  return {};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string fault;
  try {
    const auto index = peft::safetensors::parse_shard_index(text, "model.safetensors.index.json");
    fault = check_names(index);
    if (fault.empty()) fault = compare(index, text);
  } catch (const peft::Error& error) {
    if (peft::info(error.code()).exit_code != 1) fault = error.what();
  }
  if (fault.empty()) return 0;
  std::fprintf(stderr, "%s\n", fault.c_str());
  std::abort();
}
