#include "cli/output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "peft/error.h"

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
  throw Error(ErrorCode::IO_WRITE, {.file = "<stdout>", .problem = std::strerror(stdout_error)});
}

}  // namespace peft::cli
