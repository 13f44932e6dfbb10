#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/system_calls.h"
#include "peft/error.h"
#include "safetensors/staged_output.h"

namespace peft {
namespace {

constexpr int kMaxParts = 512;   // of one pwritev call; well below IOV_MAX

bool is_space(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

[[noreturn]] void fail(const std::string& path, const char* call, int error) {
  throw Error(is_space(error) ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
              {.file = path,
               .problem = std::string(call) + " failed: " + std::strerror(error),
               .hint = is_space(error) ? "free some space, or choose another place for the output" : "nothing was left behind"});
}

void check_space(const std::string& path, std::uint64_t size) {
  struct statvfs space {};
  const std::string folder = std::filesystem::path(path).parent_path().string();
  if (::statvfs(folder.c_str(), &space) != 0) return;   // the write itself will tell
  const std::uint64_t free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  if (free >= size) return;
  throw Error(ErrorCode::OUT_SPACE, {.file = path,
                                     .problem = "not enough space for the output",
                                     .expected = std::to_string(size) + " bytes",
                                     .got = std::to_string(free) + " bytes free",
                                     .hint = "nothing was written; choose another place for the output"});
}

}  // namespace

NewFile::NewFile(std::string path, std::uint64_t size) : path_(std::move(path)), size_(size) {
  check_space(path_, size);
  auto& calls = SystemCalls::get();
  fd_ = calls.open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(path_, "open", errno);
  // Reserving the space makes writing faster and a full disk known early; some file systems cannot.
  if (size > 0 && calls.fallocate(fd_, static_cast<off_t>(size)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    const int error = errno;
    calls.close(fd_);
    calls.unlink(path_.c_str());
    fail(path_, "fallocate", error);
  }
}

NewFile::~NewFile() {
  if (fd_ >= 0) SystemCalls::get().close(fd_);
}

void NewFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  writev_at(offset, std::span(&part, 1));
}

void NewFile::writev_at(std::uint64_t offset, std::span<const iovec> parts) {
  std::size_t next = 0, within = 0;   // what is written of `parts`
  iovec batch[kMaxParts];
  while (next < parts.size()) {
    const int count = static_cast<int>(std::min<std::size_t>(kMaxParts, parts.size() - next));
    std::copy_n(parts.begin() + static_cast<std::ptrdiff_t>(next), count, batch);
    batch[0].iov_base = static_cast<std::byte*>(batch[0].iov_base) + within;
    batch[0].iov_len -= within;
    const ssize_t written = SystemCalls::get().pwritev(fd_, batch, count, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(path_, "write", errno);
    }
    offset += static_cast<std::uint64_t>(written);
    within += static_cast<std::size_t>(written);
    while (next < parts.size() && within >= parts[next].iov_len) within -= parts[next++].iov_len;
    if (written == 0 && next < parts.size()) fail(path_, "write", EIO);
  }
}

void NewFile::read_at(std::uint64_t offset, std::span<std::byte> bytes) const {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got = SystemCalls::get().pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail(path_, "reading back", got < 0 ? errno : EIO);
    done += static_cast<std::size_t>(got);
  }
}

// A failed flush is final: the kernel may have dropped the data and would report success the next time.
void NewFile::close(bool sync) {
  if (fd_ < 0) return;
  auto& calls = SystemCalls::get();
  if (sync && calls.fsync(fd_) != 0) fail(path_, "fsync", errno);
  const int fd = fd_;
  fd_ = -1;
  if (calls.close(fd) != 0 && errno != EINTR) fail(path_, "close", errno);
}

}  // namespace peft
