// A file mapped for reading. A page that cannot be read (the file shrank, the network or the disk failed) would end
// the process with SIGBUS; here it reads as zeros and the mapping is marked as damaged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace peft::safetensors {

struct GuardSlot;  // of the SIGBUS handler

class Mapping {
 public:
  // Maps `size` bytes of `fd`, which may be closed afterwards. Throws IO_OPEN.
  Mapping(int fd, std::size_t size, const std::string& path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool damaged() const;
  void require_undamaged(const std::string& path) const;  // throws IO_CHANGED

  // Hints for the byte range [begin, end), which is cut to the mapping. They never fail.
  void prefetch(std::uint64_t begin, std::uint64_t end) const;  // all pages that the range touches
  void release(std::uint64_t begin, std::uint64_t end) const;   // the pages that lie in the range as a whole

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  GuardSlot* slot_ = nullptr;
};

}  // namespace peft::safetensors
