#include "safetensors/writing/new_file.h"

#include <fcntl.h>
#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/checked.h"
#include "base/system.h"
#include "peft/error.h"

namespace peft {
namespace {

constexpr std::size_t kMaxParts = 512;  // of one pwritev call; well below IOV_MAX

}  // namespace

void safetensors::fail_writing(const std::string& path, const char* action, int error) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  at(path).fail(space ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
                {.problem = std::string(action) + " failed",
                 .got = std::strerror(error),
                 .hint = space ? "free some space, or choose another place for the output" : ""});
}

NewFile::NewFile(std::string path, std::uint64_t size) : path_(std::move(path)), size_(size) {
  auto& calls = SystemCalls::get();
  fd_ = calls.open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("open", errno);
  // Reserving the space makes writing faster and a full disk known early; some file systems cannot.
  int error = 0;
  do {
    error = size == 0 || calls.fallocate(fd_, static_cast<off_t>(size)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0 || error == EOPNOTSUPP || error == ENOSYS) return;
  calls.close(fd_);  // the destructor does not run after a throw from here
  fd_ = -1;
  calls.unlink(path_.c_str());
  fail("fallocate", error);
}

NewFile::~NewFile() {
  if (fd_ >= 0) SystemCalls::get().close(fd_);
}

void NewFile::fail(const char* action, int error) {
  spoiled_ = true;
  safetensors::fail_writing(path_, action, error);
}

void NewFile::require_inside(std::uint64_t offset, std::span<const iovec> parts) const {
  std::optional<std::uint64_t> end = offset;
  for (const iovec& part : parts) end = end ? checked_add<std::uint64_t>(*end, part.iov_len) : end;
  if (end && *end <= size_) return;
  at(path_).fail(ErrorCode::INTERNAL, {.problem = "a write beyond the end of the planned file",
                                       .expected = fmt::format("at most {} bytes", size_)});
}

void NewFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  writev_at(offset, std::span(&part, 1));
}

void NewFile::writev_at(std::uint64_t offset, std::span<const iovec> parts) {
  require_inside(offset, parts);
  std::size_t next = 0, within = 0;  // what is written of `parts`
  const auto skip_written = [&] {
    while (next < parts.size() && within >= parts[next].iov_len) within -= parts[next++].iov_len;
  };
  skip_written();  // empty parts
  while (next < parts.size()) {
    iovec batch[kMaxParts];
    std::size_t count = 0;
    for (std::uint64_t room = kBlock - offset % kBlock; room > 0 && count < kMaxParts && next + count < parts.size();
         ++count) {
      const iovec& part = parts[next + count];
      const std::size_t skipped = count == 0 ? within : 0;
      const std::size_t bytes = std::min<std::uint64_t>(part.iov_len - skipped, room);
      batch[count] = {static_cast<std::byte*>(part.iov_base) + skipped, bytes};
      room -= bytes;
    }
    const ssize_t written = SystemCalls::get().pwritev(fd_, batch, static_cast<int>(count), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("write", written < 0 ? errno : EIO);
    offset += static_cast<std::uint64_t>(written);
    within += static_cast<std::size_t>(written);
    skip_written();
  }
}

void NewFile::read_at(std::uint64_t offset, std::span<std::byte> bytes) const {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got =
        SystemCalls::get().pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) safetensors::fail_writing(path_, "reading back", got < 0 ? errno : EIO);
    done += static_cast<std::size_t>(got);
  }
}

// A failed flush is final: the kernel may have dropped the data and would report success the next time.
void NewFile::close(bool sync) {
  if (spoiled_) safetensors::fail_writing(path_, "an earlier write", EIO);
  if (fd_ < 0) return;
  auto& calls = SystemCalls::get();
  if (sync && calls.fdatasync(fd_) != 0) fail("fdatasync", errno);
  const int fd = fd_;
  fd_ = -1;
  if (calls.close(fd) != 0 && errno != EINTR) fail("close", errno);
}

}  // namespace peft
