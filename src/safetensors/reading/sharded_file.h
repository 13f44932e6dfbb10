// The shards of a checkpoint as one TensorFile: their data sections follow each other.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "peft/safetensors.h"

namespace peft::safetensors {

class ShardedFile final : public TensorFile {
 public:
  // `path` is for messages: the index.
  ShardedFile(const Checkpoint& checkpoint, const std::string& path);
  // Of files whose names are unique.
  ShardedFile(std::vector<std::shared_ptr<const TensorFile>> files, const std::string& path);

  std::span<const std::byte> bytes(const TensorInfo& tensor) const override;
  void prefetch(std::uint64_t begin, std::uint64_t end) const override;
  void release(std::uint64_t begin, std::uint64_t end) const override;
  void check_unchanged() const override;

 private:
  // Calls `action(shard, begin, end)` for the part of the range in each shard, counted in the shard's own data.
  template <class Action>
  void for_each_part(std::uint64_t begin, std::uint64_t end, const Action& action) const;

  std::vector<std::shared_ptr<const TensorFile>> shards_;
  std::vector<std::uint64_t> starts_;  // of each shard's data, and the end of the last one's
};

}  // namespace peft::safetensors
