#include "safetensors/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "peft/error.h"
#include "safetensors/sigbus_guard.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older kernels refuse it, which is ignored
#endif

namespace peft::safetensors {
namespace {

std::size_t page_size() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace

Mapping::Mapping(int fd, std::size_t size, const std::string& path) : size_(size) {
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    throw Error(ErrorCode::IO_OPEN, {.file = path,
                                     .problem = "the file cannot be mapped",
                                     .got = std::strerror(errno),
                                     .hint = "copy it to a local disk"});
  }
  data_ = static_cast<std::byte*>(data);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  slot_ = guard(begin, begin + size);
}

Mapping::~Mapping() {
  unguard(slot_);
  ::munmap(data_, size_);
}

bool Mapping::damaged() const { return slot_->damaged.load(std::memory_order_acquire); }

void Mapping::prefetch(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_);
  begin = begin / page_size() * page_size();
  if (begin < end) ::madvise(data_ + begin, end - begin, MADV_POPULATE_READ);
}

void Mapping::release(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_) / page_size() * page_size();
  begin = std::min<std::uint64_t>(begin, size_);
  begin = (begin + page_size() - 1) / page_size() * page_size();
  if (begin < end) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace peft::safetensors
