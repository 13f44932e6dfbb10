// What the program takes from the operating system: system calls on files, threads, huge pages.
#pragma once

#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>

namespace peft {

// The system calls that read inputs and write outputs. Tests replace them, to make the n-th call fail, return short or
// be interrupted. Results and errno are those of the calls of the same names.
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

// What `threads` of an options struct means: that many, or one for each core when it is 0. At most kMaxThreads.
inline constexpr int kMaxThreads = 256;
int thread_count(int requested);

// Calls task(index, worker) once for every index below `count`, from `threads` workers; the caller is one of them. Each
// worker takes the lowest index that is left. Returns when all calls are done. When a task throws, no further task
// starts, and the first exception is thrown again here after all workers have stopped.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t index, int worker)>& task);

// Asks for huge pages below [data, data + size), which need not be aligned. This is a hint: it never fails.
void advise_huge_pages(const void* data, std::size_t size);

// Memory for large tables: a source of chunks for std::pmr::monotonic_buffer_resource. The chunks lie on huge pages
// where the system gives them. The kernel then sets up one page where it would set up 512 small ones.
class HugePageResource final : public std::pmr::memory_resource {
 public:
  static HugePageResource& get();

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* data, std::size_t bytes, std::size_t alignment) override;
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace peft
