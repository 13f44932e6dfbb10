#include "cli/output/output.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "peft/error.h"
#include "peft/version.h"

namespace peft::cli {
namespace {

int stdout_error = 0;  // errno of the first write that failed

std::string styled(std::string_view text, int descriptor, std::string_view code) {
  const char* no_color = std::getenv("NO_COLOR");
  if ((no_color != nullptr && *no_color != '\0') || !is_smart_terminal(descriptor)) return std::string(text);
  return "\x1b[" + std::string(code) + "m" + std::string(text) + "\x1b[0m";
}

}  // namespace

void write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() && stdout_error == 0) stdout_error = errno;
}

void write_err(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }

void write_warnings(const std::vector<std::string>& warnings) {
  for (const auto& warning : warnings)
    write_err(bold("warning:", STDERR_FILENO) + " " + printable(warning, 1000) + "\n");
}

void write_notes(const std::vector<std::string>& notes) {
  for (const auto& note : notes) write_err("note: " + printable(note, 1000) + "\n");
}

bool is_smart_terminal(int descriptor) {
  if (isatty(descriptor) == 0) return false;
  const char* term = std::getenv("TERM");
  return term != nullptr && std::strcmp(term, "dumb") != 0;
}

std::string bold(std::string_view text, int descriptor) { return styled(text, descriptor, "1"); }
std::string red(std::string_view text, int descriptor) { return styled(text, descriptor, "1;31"); }

int terminal_width() {
  winsize size{};
  if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return 0;
  return size.ws_col;
}

void finish_output() {
  if (std::fflush(stdout) != 0 && stdout_error == 0) stdout_error = errno;
  if (stdout_error == 0 || stdout_error == EPIPE) return;
  peft::at("<stdout>").fail(ErrorCode::IO_WRITE, {.problem = std::strerror(stdout_error)});
}

std::string human_bytes(std::uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  constexpr std::array<std::string_view, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, kUnits[unit]);
}

std::string grouped(std::uint64_t number) {
  std::string text = std::to_string(number);
  for (std::size_t at = text.size(); at > 3;) {
    at -= 3;
    text.insert(at, 1, ',');
  }
  return text;
}

std::string human_seconds(double seconds) {
  if (seconds < 0.0995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  const auto hours = whole / 3600, minutes = whole / 60 % 60, rest = whole % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, rest);
  return fmt::format("{}:{:02}", minutes, rest);
}

std::string short_number(double value) { return fmt::format("{:.6g}", value); }

std::size_t text_width(std::string_view utf8) {
  std::size_t width = 0;
  for (const char c : utf8) width += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return width;
}

const char* const kVersion = PEFT_VERSION;

}  // namespace peft::cli
