// Memory of T that starts at a cache line and is reused.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace peft::execution {

template <class T>
class LineBuffer {
 public:
  T* resize(std::size_t count) {
    if (count > size_) {
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return memory_.get();
  }
  T* get() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace peft::execution
