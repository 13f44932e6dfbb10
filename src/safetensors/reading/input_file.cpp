#include "safetensors/reading/input_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

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
  at(path).fail(ErrorCode::IO_KIND, {.problem = "the path is not a file",
                                     .expected = "a regular file",
                                     .got = kind_of(mode),
                                     .hint = S_ISDIR(mode) ? "name the file in the folder" : ""});
}

[[noreturn]] void cannot_open(const std::string& path, int error) {
  struct stat status {};
  if (error == ENXIO && ::stat(path.c_str(), &status) == 0) refuse_kind(path, status.st_mode);  // a socket
  at(path).fail(ErrorCode::IO_OPEN, {.problem = "the file cannot be opened",
                                     .got = std::strerror(error),
                                     .hint = error == ENOENT ? missing_file_hint(path) : ""});
}

namespace fs = std::filesystem;

bool lies_in(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// `folder`, or a folder above it, is a snapshot of a repository in a Hugging Face cache, and `path` is in its blobs.
bool is_blob_of(const fs::path& path, const fs::path& folder) {
  for (fs::path up = folder; up.has_relative_path(); up = up.parent_path()) {
    const fs::path snapshots = up.parent_path();
    if (snapshots.filename() == "snapshots" && lies_in(path, snapshots.parent_path() / "blobs")) return true;
  }
  return false;
}

// Both without links.
void require_inside(const fs::path& real, const fs::path& folder, const std::string& shown) {
  if (lies_in(real, folder) || is_blob_of(real, folder)) return;
  at(shown).fail(ErrorCode::IX_LINK, {.problem = "a link that leaves its folder",
                                      .expected = "a file in " + folder.string(),
                                      .got = real.string(),
                                      .hint = "--follow-symlinks accepts it"});
}

fs::path real_path(const std::string& path) {
  std::error_code error;
  fs::path real = fs::canonical(path, error);
  if (!error) return real;
  const std::string reason = error.message();
  const bool link = fs::is_symlink(fs::symlink_status(path, error));
  at(path).fail(ErrorCode::IO_OPEN, {.problem = link ? "the link leads nowhere" : "the file cannot be opened",
                                     .got = reason,
                                     .hint = link ? "fetch what it leads to, or remove it" : ""});
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
    at(path_).fail(ErrorCode::IO_CHANGED, {.problem = "the file has become a link"});
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
      at(path_).fail(ErrorCode::IO_OPEN, {.problem = "the file cannot be read", .got = std::strerror(errno)});
    }
    if (got == 0) {
      at(path_).fail(ErrorCode::IO_CHANGED, {.problem = "the file shrank while it was read",
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
    at(path).fail(ErrorCode::IO_CHANGED,
                  {.problem = "the file went away while it was read", .got = std::strerror(errno)});
  }
  const FileIdentity now = identity_of(status);
  if (now == before) return;
  const bool other = now.device != before.device || now.inode != before.inode;
  at(path).fail(ErrorCode::IO_CHANGED,
                {.problem = other ? "the file was replaced while it was read" : "the file changed while it was read",
                 .expected = fmt::format("{} bytes, as when it was opened", before.size),
                 .got = fmt::format("{} bytes{}", now.size, now.size == before.size ? ", written since" : ""),
                 .hint = "is another program writing it?"});
}

void require_inside(const InputFile& file, const std::string& folder) {
  std::error_code error;
  fs::path real = fs::read_symlink(fmt::format("/proc/self/fd/{}", file.fd()), error);
  if (error) real = real_path(file.path());  // no /proc here
  require_inside(real, real_path(folder), file.path());
}

std::string path_inside(const std::string& folder, const std::string& name, bool follow_symlinks) {
  const fs::path root = real_path(folder);
  const std::string shown = (fs::path(folder) / name).string();
  const fs::path real = real_path(shown);
  if (!follow_symlinks) require_inside(real, root, shown);
  if (real == root / name) {  // no link: the name stays as it was given
    const InputFile readable(shown);
    return shown;
  }
  try {
    const InputFile readable(real.string());
  } catch (const Error& error) {
    ErrorDetail detail = error.detail();
    detail.file = shown;
    throw Error(error.code(), std::move(detail));
  }
  return real.string();
}

std::string read_text_file(const std::string& path, ErrorCode form, ErrorCode missing) {
  std::error_code error;
  if (fs::status(path, error).type() == fs::file_type::not_found)
    at(path).fail(missing, {.problem = "there is no such file"});
  const InputFile file(path);
  if (file.size() > kMaxTextBytes)
    at(path).fail(form, {.problem = fmt::format("longer than the {} bytes a config may have", kMaxTextBytes)});
  std::string text(file.size(), '\0');
  file.read(0, text);
  refuse_lfs_pointer(text, path, form);
  return text;
}

void refuse_lfs_pointer(std::string_view text, const std::string& path, ErrorCode code) {
  if (!text.starts_with(kLfsPointer)) return;
  at(path).fail(code, {.problem = std::string(kLfsText), .expected = "a JSON text", .hint = std::string(kLfsHint)});
}

}  // namespace peft::safetensors
