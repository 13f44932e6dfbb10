#include "base/huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace peft {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t alignment_of(std::size_t bytes, std::size_t alignment) {
  return bytes >= kHugePage ? std::max(alignment, kHugePage) : alignment;
}

}  // namespace

void advise_huge_pages(const void* data, std::size_t size) {
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + size) / kHugePage * kHugePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

HugePageResource& HugePageResource::get() {
  static HugePageResource resource;
  return resource;
}

void* HugePageResource::do_allocate(std::size_t bytes, std::size_t alignment) {
  void* data = ::operator new(bytes, std::align_val_t(alignment_of(bytes, alignment)));
  advise_huge_pages(data, bytes);
  return data;
}

void HugePageResource::do_deallocate(void* data, std::size_t bytes, std::size_t alignment) {
  ::operator delete(data, std::align_val_t(alignment_of(bytes, alignment)));
}

}  // namespace peft
