#include "safetensors/reading/sharded_file.h"

#include <algorithm>
#include <new>
#include <utility>

#include "safetensors/reading/header.h"

namespace peft::safetensors {

ShardedFile::ShardedFile(const Checkpoint& checkpoint, const std::string& path)
    : ShardedFile(checkpoint.files(), path) {
  notes_.insert(notes_.begin(), checkpoint.notes().begin(), checkpoint.notes().end());
}

ShardedFile::ShardedFile(std::vector<std::shared_ptr<const TensorFile>> files, const std::string& path)
    : shards_(std::move(files)) {
  path_ = path;
  Header header;
  header.memory = std::make_unique<std::pmr::monotonic_buffer_resource>();
  std::size_t count = 0;
  for (const auto& shard : shards_) count += shard->tensors().size();
  auto* tensors = static_cast<TensorInfo*>(
      header.memory->allocate(std::max<std::size_t>(count, 1) * sizeof(TensorInfo), alignof(TensorInfo)));
  std::size_t next = 0;
  for (const auto& shard : shards_) {
    starts_.push_back(file_size_);
    for (TensorInfo tensor : shard->tensors()) {  // its name and shape stay in the shard
      tensor.begin += file_size_, tensor.end += file_size_;
      new (tensors + next++) TensorInfo(tensor);
    }
    file_size_ += shard->file_size() - shard->data_offset();  // cannot overflow: each is a file's size
    notes_.insert(notes_.end(), shard->notes().begin(), shard->notes().end());
  }
  starts_.push_back(file_size_);
  tensors_ = header.tensors = {tensors, next};
  header.names = NameIndex(tensors_, *header.memory);
  index_ = std::make_shared<const Index>(Index{std::move(header)});
}

template <class Action>
void ShardedFile::for_each_part(std::uint64_t begin, std::uint64_t end, const Action& action) const {
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    const std::uint64_t first = std::max(begin, starts_[i]), last = std::min(end, starts_[i + 1]);
    if (first < last) action(*shards_[i], first - starts_[i], last - starts_[i]);
  }
}

std::span<const std::byte> ShardedFile::bytes(const TensorInfo& tensor) const {
  std::span<const std::byte> found;
  for_each_part(tensor.begin, tensor.end, [&](const TensorFile& shard, std::uint64_t begin, std::uint64_t end) {
    TensorInfo inside = tensor;
    inside.begin = begin, inside.end = end;
    found = shard.bytes(inside);
  });
  return found;
}

void ShardedFile::prefetch(std::uint64_t begin, std::uint64_t end) const {
  for_each_part(begin, end, [](const TensorFile& shard, auto first, auto last) { shard.prefetch(first, last); });
}

void ShardedFile::release(std::uint64_t begin, std::uint64_t end) const {
  for_each_part(begin, end, [](const TensorFile& shard, auto first, auto last) { shard.release(first, last); });
}

void ShardedFile::check_unchanged() const {
  for (const auto& shard : shards_) shard->check_unchanged();
}

}  // namespace peft::safetensors
