#include "peft/nn/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace peft::nn {
namespace {

constexpr std::size_t kHeader = 64;                   // before the data, which stays aligned
constexpr std::size_t kLarge = std::size_t{1} << 20;  // smaller blocks are the C library's
constexpr std::size_t kLeastKept = std::size_t{16} << 20;

// What is written before the data of a block.
struct Header {
  std::size_t mapped;  // bytes of the mapping; 0: a block of the C library
};

// Sizes are rounded up by an eighth at most, so that tensors of nearly one size share blocks.
std::size_t rounded(std::size_t bytes) {
  const std::size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

// Mappings that are in use or wait for the next tensor of their size. For several threads.
class Blocks {
 public:
  void* take(std::size_t bytes) {
    {
      const std::lock_guard lock(guard_);
      used_ += bytes;
      most_used_ = std::max(most_used_, used_);
      if (std::vector<void*>& waiting = waiting_[bytes]; !waiting.empty()) {
        void* block = waiting.back();
        waiting.pop_back();
        order_.erase(std::find(order_.begin(), order_.end(), std::pair(bytes, block)));
        free_ -= bytes;
        return block;
      }
    }
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
      const std::lock_guard lock(guard_);
      used_ -= bytes;
      throw std::bad_alloc();
    }
    madvise(block, bytes, MADV_HUGEPAGE);  // a hint: fewer first touches
    return block;
  }

  void give_back(void* block, std::size_t bytes) {
    const std::lock_guard lock(guard_);
    used_ -= bytes, free_ += bytes;
    waiting_[bytes].push_back(block);
    order_.emplace_back(bytes, block);
    while (free_ > std::max(kLeastKept, most_used_ / 16)) {
      const auto [size, oldest] = order_.front();
      order_.pop_front();
      std::erase(waiting_[size], oldest);
      munmap(oldest, size);
      free_ -= size;
    }
  }

 private:
  std::mutex guard_;
  std::map<std::size_t, std::vector<void*>> waiting_;  // by size
  std::deque<std::pair<std::size_t, void*>> order_;    // the one that has waited longest first
  std::size_t used_ = 0, most_used_ = 0, free_ = 0;
};

Blocks& blocks() {
  static auto* all = new Blocks;  // tensors may outlive every other object
  return *all;
}

void release(void* data) {
  if (data == nullptr) return;
  void* start = static_cast<std::byte*>(data) - kHeader;
  const std::size_t mapped = static_cast<Header*>(start)->mapped;
  mapped == 0 ? c10::free_cpu(start) : blocks().give_back(start, mapped);
}

class Allocator final : public c10::Allocator {
 public:
  // libtorch has had allocate() with const and without, and copy_data() since 2.2: what is there is overridden.
  c10::DataPtr allocate(std::size_t bytes) { return make(bytes); }
  c10::DataPtr allocate(std::size_t bytes) const { return make(bytes); }
  void copy_data(void* to, const void* from, std::size_t count) const { std::memcpy(to, from, count); }
  c10::DeleterFnPtr raw_deleter() const { return &release; }

 private:
  static c10::DataPtr make(std::size_t bytes) {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    const std::size_t mapped = bytes < kLarge ? 0 : rounded(bytes + kHeader);
    void* start = mapped == 0 ? c10::alloc_cpu(bytes + kHeader) : blocks().take(mapped);
    static_cast<Header*>(start)->mapped = mapped;
    void* data = static_cast<std::byte*>(start) + kHeader;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
};

}  // namespace

void reuse_memory_blocks() {
  static auto* allocator = new Allocator;
  c10::SetCPUAllocator(allocator, 1);
}

}  // namespace peft::nn
