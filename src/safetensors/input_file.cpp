#include "safetensors/input_file.h"

#include <fcntl.h>
#include <fmt/core.h>

#include <cerrno>
#include <cstring>

#include "base/system.h"
#include "base/text.h"
#include "peft/error.h"

namespace peft::safetensors {
namespace {

// O_NONBLOCK: opening a pipe must not wait for its writer.
constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

const char* kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a folder";
    case S_IFIFO:
      return "a named pipe";
    case S_IFCHR:
    case S_IFBLK:
      return "a device";
    case S_IFSOCK:
      return "a socket";
    default:
      return "something else";
  }
}

[[noreturn]] void refuse_kind(const std::string& path, mode_t mode) {
  throw Error(ErrorCode::IO_KIND, {.file = path,
                                   .problem = "the path is not a file",
                                   .expected = "a regular file",
                                   .got = kind_of(mode),
                                   .hint = S_ISDIR(mode) ? "name the file in the folder" : ""});
}

[[noreturn]] void cannot_open(const std::string& path, int error) {
  struct stat status {};
  if (error == ENXIO && ::stat(path.c_str(), &status) == 0) refuse_kind(path, status.st_mode);  // a socket
  throw Error(ErrorCode::IO_OPEN, {.file = path,
                                   .problem = "the file cannot be opened",
                                   .got = std::strerror(error),
                                   .hint = error == ENOENT ? missing_file_hint(path) : ""});
}

}  // namespace

FileIdentity identity_of(const struct stat& status) {
  return {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
          static_cast<std::uint64_t>(status.st_size),
          static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
}

InputFile::InputFile(const std::string& path, Links links) : path_(path) {
  const int flags = links == Links::refuse ? kFlags | O_NOFOLLOW : kFlags;
  do {
    fd_ = SystemCalls::get().open(path.c_str(), flags, 0);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0 && links == Links::refuse && errno == ELOOP)
    throw Error(ErrorCode::IO_CHANGED, {.file = path_, .problem = "the file has become a link"});
  if (fd_ < 0) cannot_open(path_, errno);
  examine();
}

InputFile::InputFile(int folder_fd, const std::string& name, const std::string& path) : path_(path) {
  do {
    fd_ = ::openat(folder_fd, name.c_str(), kFlags);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) cannot_open(path_, errno);
  examine();
}

InputFile::~InputFile() {
  if (fd_ >= 0) SystemCalls::get().close(fd_);
}

void InputFile::examine() {
  struct stat status {};
  const int result = ::fstat(fd_, &status), error = errno;
  if (result == 0 && S_ISREG(status.st_mode)) {
    identity_ = identity_of(status);
    return;
  }
  SystemCalls::get().close(fd_);  // the destructor does not run after a throw from here
  fd_ = -1;
  if (result != 0) cannot_open(path_, error);
  refuse_kind(path_, status.st_mode);
}

void InputFile::read(std::uint64_t offset, std::span<char> bytes) const {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got =
        SystemCalls::get().pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw Error(ErrorCode::IO_OPEN,
                  {.file = path_, .problem = "the file cannot be read", .got = std::strerror(errno)});
    }
    if (got == 0) {
      throw Error(ErrorCode::IO_CHANGED, {.file = path_,
                                          .problem = "the file shrank while it was read",
                                          .expected = fmt::format("{} bytes", size()),
                                          .got = fmt::format("{} bytes", offset + done),
                                          .hint = "is another program writing it?"});
    }
    done += static_cast<std::size_t>(got);
  }
}

void require_unchanged(const std::string& path, const FileIdentity& before) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    throw Error(ErrorCode::IO_CHANGED,
                {.file = path, .problem = "the file went away while it was read", .got = std::strerror(errno)});
  }
  const FileIdentity now = identity_of(status);
  if (now == before) return;
  const bool other = now.device != before.device || now.inode != before.inode;
  throw Error(ErrorCode::IO_CHANGED,
              {.file = path,
               .problem = other ? "the file was replaced while it was read" : "the file changed while it was read",
               .expected = fmt::format("{} bytes, as when it was opened", before.size),
               .got = fmt::format("{} bytes{}", now.size, now.size == before.size ? ", written since" : ""),
               .hint = "is another program writing it?"});
}

}  // namespace peft::safetensors
