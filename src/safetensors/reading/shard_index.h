// model.safetensors.index.json: which tensor is in which shard.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft::safetensors {

struct ShardIndex {
  std::string path;
  std::vector<std::pair<std::string, std::string>> files;  // tensor, shard; sorted by tensor, each tensor once
  std::optional<std::uint64_t> total_size;                 // as stated
  std::vector<std::string> notes;                          // about total_size

  std::vector<std::string> shards() const;  // each once, sorted
};

// Throws IX_FORM, IX_PATH, ST_DUP, ST_UTF8, ... `text` is the file's whole content.
ShardIndex parse_shard_index(std::string_view text, const std::string& path);
ShardIndex read_shard_index(const std::string& path);

}  // namespace peft::safetensors
