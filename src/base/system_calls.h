// The system calls that read inputs and write outputs, behind one seam: tests make the n-th of them fail, return short,
// or be interrupted.
#pragma once

#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace peft {

// Results and errno as the calls of the same names have them.
class SystemCalls {
 public:
  virtual ~SystemCalls() = default;
  virtual int open(const char* path, int flags, mode_t mode);
  virtual int close(int fd);
  virtual ssize_t pread(int fd, void* data, std::size_t size, off_t offset);
  virtual ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset);
  virtual int fallocate(int fd, off_t size);
  virtual int fsync(int fd);
  virtual int fdatasync(int fd);
  virtual int mkdir(const char* path, mode_t mode);
  virtual int rename(const char* from, const char* to, unsigned flags);  // renameat2
  virtual int unlink(const char* path);
  virtual int rmdir(const char* path);
  virtual int lock(int fd, bool shared);  // flock, without waiting
  virtual int statvfs(const char* path, struct statvfs* space);

  static SystemCalls& get();                        // what the library uses
  static SystemCalls* replace(SystemCalls* calls);  // for tests; null restores the real ones; returns the former
};

}  // namespace peft
