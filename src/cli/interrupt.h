// Ctrl-C while a folder is being written: the first signal asks execute() to stop and clean up, a second one ends
// the process at once. Both exit with 5: what is left, if anything, the next run knows what to do with.
#pragma once

#include <atomic>

namespace peft::cli {

// Catches SIGINT and SIGTERM while it lives. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  const std::atomic<bool>* flag() const;
};

// A closed pipe or a file size limit becomes an error of the write, not the death of the process.
void ignore_write_signals();

}  // namespace peft::cli
