// Large buffers on huge pages. The first touch of a page is far dearer than any later use of it, and a huge page
// is touched once where 512 small ones would be.
#pragma once

#include <cstddef>
#include <memory_resource>

namespace peft {

// Asks for huge pages below [data, data + size), which need not be aligned. A hint: it never fails.
void advise_huge_pages(const void* data, std::size_t size);

// What std::pmr::monotonic_buffer_resource gets its chunks from.
class HugePageResource final : public std::pmr::memory_resource {
 public:
  static HugePageResource& get();

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* data, std::size_t bytes, std::size_t alignment) override;
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace peft
