// System calls that fail, die, give little or lie, as a test decides for each call. For tests only.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/system.h"

namespace peft::faults {

enum class Kind {
  open,
  close,
  pread,
  pwritev,
  fallocate,
  fsync,
  fdatasync,
  mkdir,
  rename,
  unlink,
  rmdir,
  lock,
  statvfs
};

inline const char* name(Kind kind) {
  constexpr const char* kNames[] = {"open",  "close",  "pread",  "pwritev", "fallocate", "fsync",  "fdatasync",
                                    "mkdir", "rename", "unlink", "rmdir",   "lock",      "statvfs"};
  return kNames[static_cast<int>(kind)];
}

struct Call {
  Kind kind;
  std::string path;    // of the descriptor, too
  int number;          // from 1, of all calls
  std::size_t size;    // of reads and writes
  unsigned flags = 0;  // of rename
};

// In place of the real calls while it lives. One at a time.
class FaultCalls : public SystemCalls {
 public:
  FaultCalls() : former_(replace(this)) {}
  ~FaultCalls() override { replace(former_); }
  FaultCalls(const FaultCalls&) = delete;
  FaultCalls& operator=(const FaultCalls&) = delete;

  static constexpr int kPass = 0;
  std::function<int(const Call&)> judge = [](const Call&) { return kPass; };  // the errno that the call fails with
  std::function<std::size_t(const Call&)> limit = {};                         // bytes that a read or write gets to do
  std::function<void(const Call&, std::byte* data, std::size_t size, off_t at)> spoil = {};  // what is written or read
  std::function<void(struct statvfs&)> space = {};
  int count() const { return count_; }

  int open(const char* path, int flags, mode_t mode) override {
    if (fails(Kind::open, path)) return -1;
    const int fd = SystemCalls::open(path, flags, mode);
    const std::lock_guard lock(mutex_);
    if (fd >= 0) paths_[fd] = path;
    return fd;
  }
  int close(int fd) override {
    const int bad = verdict(Kind::close, path_of(fd));
    const int result = SystemCalls::close(fd);
    if (bad != kPass) errno = bad;
    return bad != kPass ? -1 : result;
  }
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    const Call call = next(Kind::pread, path_of(fd), size);
    if (refuses(call)) return -1;
    const ssize_t got = SystemCalls::pread(fd, data, limit ? std::min(size, limit(call)) : size, offset);
    if (spoil && got > 0) spoil(call, static_cast<std::byte*>(data), static_cast<std::size_t>(got), offset);
    return got;
  }
  ssize_t pwritev(int fd, const iovec* parts, int number, off_t offset) override {
    std::size_t size = 0;
    for (int i = 0; i < number; ++i) size += parts[i].iov_len;
    const Call call = next(Kind::pwritev, path_of(fd), size);
    if (refuses(call)) return -1;
    if (!limit && !spoil) return SystemCalls::pwritev(fd, parts, number, offset);
    std::string bytes;
    for (int i = 0; i < number; ++i) bytes.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
    if (spoil) spoil(call, reinterpret_cast<std::byte*>(bytes.data()), bytes.size(), offset);
    const iovec part{bytes.data(), limit ? std::min(size, limit(call)) : size};
    return SystemCalls::pwritev(fd, &part, 1, offset);
  }
  int fallocate(int fd, off_t size) override {
    return fails(Kind::fallocate, path_of(fd)) ? -1 : SystemCalls::fallocate(fd, size);
  }
  int fsync(int fd) override { return fails(Kind::fsync, path_of(fd)) ? -1 : SystemCalls::fsync(fd); }
  int fdatasync(int fd) override { return fails(Kind::fdatasync, path_of(fd)) ? -1 : SystemCalls::fdatasync(fd); }
  int mkdir(const char* path, mode_t mode) override {
    return fails(Kind::mkdir, path) ? -1 : SystemCalls::mkdir(path, mode);
  }
  int rename(const char* from, const char* to, unsigned flags) override {
    Call call = next(Kind::rename, to, 0);
    call.flags = flags;
    return refuses(call) ? -1 : SystemCalls::rename(from, to, flags);
  }
  int unlink(const char* path) override { return fails(Kind::unlink, path) ? -1 : SystemCalls::unlink(path); }
  int rmdir(const char* path) override { return fails(Kind::rmdir, path) ? -1 : SystemCalls::rmdir(path); }
  int lock(int fd, bool shared) override { return fails(Kind::lock, path_of(fd)) ? -1 : SystemCalls::lock(fd, shared); }
  int statvfs(const char* path, struct statvfs* found) override {
    const int result = fails(Kind::statvfs, path) ? -1 : SystemCalls::statvfs(path, found);
    if (space) space(*found);
    return result;
  }

 private:
  Call next(Kind kind, std::string path, std::size_t size) {
    const std::lock_guard lock(mutex_);
    return {kind, std::move(path), ++count_, size};
  }
  bool refuses(const Call& call) {
    const int error = judge(call);
    if (error != kPass) errno = error;
    return error != kPass;
  }
  int verdict(Kind kind, const std::string& path) { return judge(next(kind, path, 0)); }
  bool fails(Kind kind, const std::string& path) { return refuses(next(kind, path, 0)); }
  std::string path_of(int fd) {
    const std::lock_guard lock(mutex_);
    const auto it = paths_.find(fd);
    return it == paths_.end() ? std::string() : it->second;
  }

  std::mutex mutex_;
  std::map<int, std::string> paths_;
  int count_ = 0;
  SystemCalls* former_;
};

// Fails the n-th call; with `persistent`, all later ones of the same kind as well.
class NthCall {
 public:
  NthCall(int n, int error, bool persistent) : n_(n), error_(error), persistent_(persistent) {}
  int operator()(const Call& call) {
    if (call.number == n_) failing_ = call.kind;
    const bool fails = call.number == n_ || (persistent_ && failing_ == call.kind);
    return fails ? error_ : FaultCalls::kPass;
  }

 private:
  int n_, error_;
  bool persistent_;
  std::optional<Kind> failing_;
};

}  // namespace peft::faults
