// A progress line on stderr: done, rate, time left. Drawn at most ten times a second, and only on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace peft::cli {

class ProgressBar {
 public:
  // `shown` false: update() does nothing.
  explicit ProgressBar(bool shown);
  ~ProgressBar();  // erases the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::uint64_t done, std::uint64_t total);  // from any thread

 private:
  using Clock = std::chrono::steady_clock;
  const bool shown_;
  const Clock::time_point start_;
  std::mutex mutex_;
  Clock::time_point last_;
  bool drawn_ = false;
};

// "[=====>    ]  52%  410 MiB of 789 MiB  1.2 GiB/s  0.3 s left"
std::string progress_line(std::uint64_t done, std::uint64_t total, double seconds);

}  // namespace peft::cli
