// A progress line on stderr: done, rate, time left. Drawn ten times a second on a terminal; elsewhere, as in the log of
// a batch job, a line every half minute.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace peft::cli {

class ProgressBar {
 public:
  enum class Style { none, bar, lines };
  explicit ProgressBar(Style style);
  explicit ProgressBar(bool shown) : ProgressBar(shown ? Style::bar : Style::none) {}
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

}  // namespace peft::cli
