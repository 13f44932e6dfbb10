#include "buffer.h"

#include <sys/mman.h>

#include <new>

#include "base/system.h"

namespace peft::python {
namespace {

class Buffer {
 public:
  Buffer(std::byte* data, std::size_t size, bool read_only, std::shared_ptr<const void> owner)
      : data_(data), size_(size), read_only_(read_only), owner_(std::move(owner)) {}
  std::span<std::byte> bytes() const { return {data_, size_}; }
  int fill(PyObject* self, Py_buffer* view, int flags) const {
    return PyBuffer_FillInfo(view, self, data_, static_cast<Py_ssize_t>(size_), read_only_ ? 1 : 0, flags);
  }

 private:
  std::byte* data_;
  std::size_t size_;
  bool read_only_;
  std::shared_ptr<const void> owner_;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  return nb::inst_ptr<Buffer>(nb::handle(self))->fill(self, view, flags);
}

PyType_Slot kSlots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

}  // namespace

Memory::Memory(std::size_t size) : size_(size) {
  if (size == 0) return;
  void* pages = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(pages);
  advise_huge_pages(data_, size);
}

Memory::~Memory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

nb::object buffer_of(std::shared_ptr<Memory> memory) {
  const std::span<std::byte> bytes = memory->bytes();
  return nb::cast(Buffer(bytes.data(), bytes.size(), false, std::move(memory)));
}

std::span<std::byte> bytes_of(nb::handle buffer) { return nb::cast<const Buffer&>(buffer).bytes(); }

nb::object read_only_buffer(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
  return nb::cast(Buffer(const_cast<std::byte*>(bytes.data()), bytes.size(), true, std::move(owner)));
}

void add_buffers(nb::module_& module) {
  nb::class_<Buffer>(module, "Buffer", nb::type_slots(kSlots));
  add_dlpack(module);
}

}  // namespace peft::python
