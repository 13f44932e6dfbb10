#include "cli/progress_bar.h"

#include <fmt/core.h>

#include <algorithm>

#include "cli/output.h"
#include "cli/units.h"

namespace peft::cli {
namespace {

constexpr std::chrono::milliseconds kPeriod{100}, kLinePeriod{30'000};
constexpr std::size_t kBarWidth = 24;

}  // namespace

ProgressBar::ProgressBar(Style style) : style_(style), start_(Clock::now()), last_(start_) {}

ProgressBar::~ProgressBar() {
  if (drawn_) write_err("\r\x1b[K");
}

void ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  if (style_ == Style::none) return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return;  // another thread is drawing
  const auto now = Clock::now();
  if (total != last_total_) start_ = now;
  last_total_ = total;
  if (now - last_ < (style_ == Style::bar ? kPeriod : kLinePeriod)) return;
  last_ = now;
  const std::string line = progress_line(done, total, std::chrono::duration<double>(now - start_).count());
  if (style_ == Style::lines) return write_err(line + "\n");
  drawn_ = true;
  write_err("\r" + line + "\x1b[K");
}

std::string progress_line(std::uint64_t done, std::uint64_t total, double seconds) {
  const double part = total == 0 ? 1 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const auto filled = static_cast<std::size_t>(part * kBarWidth);
  std::string bar(filled, '=');
  if (filled < kBarWidth) bar += '>';
  bar.resize(kBarWidth, ' ');
  std::string line =
      fmt::format("[{}] {:3.0f}%  {} of {}", bar, part * 100, human_bytes(std::min(done, total)), human_bytes(total));
  if (seconds > 0 && done > 0) {
    const double rate = static_cast<double>(done) / seconds;
    line += fmt::format("  {}/s", human_bytes(static_cast<std::uint64_t>(rate)));
    if (done < total) line += fmt::format("  {} left", human_seconds(static_cast<double>(total - done) / rate));
  }
  return line;
}

}  // namespace peft::cli
