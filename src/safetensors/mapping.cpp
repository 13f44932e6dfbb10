#include "safetensors/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "peft/error.h"
#include "safetensors/sigbus_guard.h"

namespace peft::safetensors {
namespace {

constexpr std::uint64_t kMappedAtOnce = 64 << 10;  // Linux's fault_around_bytes

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

// One access of each stretch that the kernel maps in one go. MADV_POPULATE_READ looks at every page once more: twice
// the time.
void Mapping::prefetch(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_);
  while (begin < end) {
    static_cast<void>(*static_cast<const volatile std::byte*>(data_ + begin));
    begin = (begin / kMappedAtOnce + 1) * kMappedAtOnce;
  }
}

void Mapping::release(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_) / page_size() * page_size();
  begin = std::min<std::uint64_t>(begin, size_);
  begin = (begin + page_size() - 1) / page_size() * page_size();
  if (begin < end) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace peft::safetensors
