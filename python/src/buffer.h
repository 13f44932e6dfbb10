// Memory that Python sees through its buffer protocol: results, which it may write, and the data of open files, which
// it may not.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "module.h"

namespace peft::python {

// Fresh pages; given back when the last array over them is gone.
class Memory {
 public:
  explicit Memory(std::size_t size);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// An object with the buffer protocol over the bytes; it keeps `owner` alive.
nb::object buffer_of(std::shared_ptr<Memory> memory);
std::span<std::byte> bytes_of(nb::handle buffer);
nb::object read_only_buffer(std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

// Arrays of other libraries, by way of DLPack.
void add_dlpack(nb::module_& module);

void add_buffers(nb::module_& module);

}  // namespace peft::python
