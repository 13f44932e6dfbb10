// What a long run shows and listens to: a progress line on stderr, and Ctrl-C.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "peft/execute.h"

namespace peft::cli {

// Done, rate, time left. Drawn ten times a second on a terminal; elsewhere, as in the log of a batch job, a line every
// half minute.
class ProgressBar {
 public:
  enum class Style { none, bar, lines };
  explicit ProgressBar(Style style);
  ~ProgressBar();  // erases the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // From any thread. Another total begins a new count: files of an earlier run are checked first, then the rest made.
  void update(std::uint64_t done, std::uint64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  const Style style_;
  std::mutex mutex_;
  Clock::time_point start_, last_;
  std::uint64_t last_total_ = 0;
  bool drawn_ = false;
};

// "[=====>    ]  52%  410 MiB of 789 MiB  1.2 GiB/s  0.3 s left"
std::string progress_line(std::uint64_t done, std::uint64_t total, double seconds);

// Catches SIGINT and SIGTERM while it lives. One at a time. The first signal asks execute() to stop and clean up, a
// second one ends the process at once. Both exit with 5. The next run knows what to do with what is left.
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

// Carries the plan out with a progress line and Ctrl-C caught. `lines`: outside of a terminal, write lines.
ExecuteReport execute_shown(const Plan& plan, const std::string& out, ExecuteOptions options, bool quiet,
                            bool lines = false);
// "synced, read back": what was done for the output's safety.
std::string checks_text(const ExecuteOptions& options);

}  // namespace peft::cli
