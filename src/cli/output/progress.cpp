#include "cli/output/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "cli/output/output.h"

namespace peft::cli {
namespace {

constexpr std::chrono::milliseconds kPeriod{100}, kLinePeriod{30'000};
constexpr std::size_t kBarWidth = 24;

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void set_action(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

constexpr int kInterrupted = 5;  // the exit code

void on_signal(int) {
  if (interrupted.exchange(true)) ::_exit(kInterrupted);
}

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

InterruptGuard::InterruptGuard() {
  interrupted.store(false);
  set_action(SIGINT, on_signal);
  set_action(SIGTERM, on_signal);
}

InterruptGuard::~InterruptGuard() {
  set_action(SIGINT, SIG_DFL);
  set_action(SIGTERM, SIG_DFL);
}

const std::atomic<bool>* InterruptGuard::flag() const { return &interrupted; }

void ignore_write_signals() {
  set_action(SIGPIPE, SIG_IGN);
  set_action(SIGXFSZ, SIG_IGN);
}

ExecuteReport execute_shown(const Plan& plan, const std::string& out, ExecuteOptions options, bool quiet, bool lines) {
  using Style = ProgressBar::Style;
  const InterruptGuard interrupt;
  const Style elsewhere = lines ? Style::lines : Style::none;
  ProgressBar bar(quiet ? Style::none : is_smart_terminal(STDERR_FILENO) ? Style::bar : elsewhere);
  options.cancel = interrupt.flag();
  options.progress = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  return execute(plan, out, options);
}

std::string checks_text(const ExecuteOptions& options) {
  return fmt::format("{}, {}", options.sync ? "synced" : "not synced",
                     options.readback ? "read back" : "not read back");
}

}  // namespace peft::cli
