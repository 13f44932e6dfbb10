// A buffer of T that starts at a cache line and is reused from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace peft::execution {

template <class T>
class LineBuffer {
 public:
  LineBuffer() = default;
  LineBuffer(LineBuffer&& other) noexcept
      : memory_(std::move(other.memory_)),
        first_(std::exchange(other.first_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  LineBuffer& operator=(LineBuffer&& other) noexcept {
    memory_ = std::move(other.memory_);
    first_ = std::exchange(other.first_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* resize(std::size_t count) {
    if (count > size_) {
      // No aligned new: glibc does not reuse what such a block leaves behind, and memory would grow with the model.
      memory_ = std::make_unique_for_overwrite<std::byte[]>(count * sizeof(T) + kLine);
      const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
      first_ = reinterpret_cast<T*>(memory_.get() + (kLine - address % kLine) % kLine);
      size_ = count;
    }
    return first_;
  }
  T* get() const { return first_; }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t kLine = 64;
  std::unique_ptr<std::byte[]> memory_;
  T* first_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace peft::execution
