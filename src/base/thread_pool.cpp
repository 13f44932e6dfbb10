#include "base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace peft {

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

}  // namespace peft
