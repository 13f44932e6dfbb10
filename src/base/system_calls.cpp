#include "base/system_calls.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

namespace peft {
namespace {

std::atomic<SystemCalls*> replacement{nullptr};

}  // namespace

int SystemCalls::open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }
int SystemCalls::close(int fd) { return ::close(fd); }
ssize_t SystemCalls::pread(int fd, void* data, std::size_t size, off_t offset) {
  return ::pread(fd, data, size, offset);
}
ssize_t SystemCalls::pwritev(int fd, const iovec* parts, int count, off_t offset) {
  return ::pwritev(fd, parts, count, offset);
}
int SystemCalls::fallocate(int fd, off_t size) { return ::fallocate(fd, 0, 0, size); }
int SystemCalls::fsync(int fd) { return ::fsync(fd); }
int SystemCalls::fdatasync(int fd) { return ::fdatasync(fd); }
int SystemCalls::mkdir(const char* path, mode_t mode) { return ::mkdir(path, mode); }
int SystemCalls::rename(const char* from, const char* to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
}
int SystemCalls::unlink(const char* path) { return ::unlink(path); }
int SystemCalls::rmdir(const char* path) { return ::rmdir(path); }
int SystemCalls::lock(int fd, bool shared) { return ::flock(fd, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB); }
int SystemCalls::statvfs(const char* path, struct statvfs* space) { return ::statvfs(path, space); }

SystemCalls& SystemCalls::get() {
  static SystemCalls real;
  SystemCalls* replaced = replacement.load();
  return replaced == nullptr ? real : *replaced;
}

SystemCalls* SystemCalls::replace(SystemCalls* calls) { return replacement.exchange(calls); }

}  // namespace peft
