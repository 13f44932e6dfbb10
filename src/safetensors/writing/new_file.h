// One file of an output while it is written.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace peft {

// Its size is known beforehand. Writing and reading are thread-safe. They throw IO_WRITE or OUT_SPACE; after that the
// file is spoiled, and close() throws too.
class NewFile {
 public:
  NewFile(std::string path, std::uint64_t size);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  // Writes are cut at multiples of this, so that the kernel takes whole, large pages for the file. A larger block would
  // need more free memory in one piece.
  static constexpr std::uint64_t kBlock = std::uint64_t{1} << 20;
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  void writev_at(std::uint64_t offset, std::span<const iovec> parts);
  void read_at(std::uint64_t offset, std::span<std::byte> bytes) const;
  void close(bool sync);  // throws when the bytes may not have reached the disk; does nothing when closed

 private:
  [[noreturn]] void fail(const char* action, int error);
  void require_inside(std::uint64_t offset, std::span<const iovec> parts) const;

  std::string path_;
  std::uint64_t size_;
  int fd_ = -1;
  std::atomic<bool> spoiled_{false};
};

namespace safetensors {
// Throws OUT_SPACE for a full disk, IO_WRITE for every other error.
[[noreturn]] void fail_writing(const std::string& path, const char* action, int error);
}  // namespace safetensors

}  // namespace peft
