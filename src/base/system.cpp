#include "base/system.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace peft {
namespace {

std::atomic<SystemCalls*> replacement{nullptr};

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t alignment_of(std::size_t bytes, std::size_t alignment) {
  return bytes >= kHugePage ? std::max(alignment, kHugePage) : alignment;
}

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

int thread_count(int requested) {
  if (requested > 0) return std::min(requested, kMaxThreads);
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t, int)>& task) {
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> stop = false;
  std::mutex mutex;
  std::exception_ptr first;
  const auto work = [&](int worker) {
    try {
      while (!stop) {
        const std::size_t index = next++;
        if (index >= count) return;
        task(index, worker);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      stop = true;
    }
  };
  {
    std::vector<std::jthread> others;
    const auto wanted = std::min<std::size_t>(count, static_cast<std::size_t>(std::max(threads, 1)));
    others.reserve(wanted);
    for (std::size_t worker = 1; worker < wanted; ++worker) {
      try {
        others.emplace_back(work, static_cast<int>(worker));
      } catch (const std::system_error&) {
        break;  // the system gives no more threads: those there are do all the work
      }
    }
    work(0);
  }
  if (first) std::rethrow_exception(first);
}

void advise_huge_pages(const void* data, std::size_t size) {
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + size) / kHugePage * kHugePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

HugePageResource& HugePageResource::get() {
  static HugePageResource resource;
  return resource;
}

void* HugePageResource::do_allocate(std::size_t bytes, std::size_t alignment) {
  void* data = ::operator new(bytes, std::align_val_t(alignment_of(bytes, alignment)));
  advise_huge_pages(data, bytes);
  return data;
}

void HugePageResource::do_deallocate(void* data, std::size_t bytes, std::size_t alignment) {
  ::operator delete(data, std::align_val_t(alignment_of(bytes, alignment)));
}

}  // namespace peft
