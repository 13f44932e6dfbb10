#include "cli/program.h"

#include <malloc.h>

#include <algorithm>

#include "cli/arguments.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"

namespace peft::cli {
namespace {

int run_text(const TextCommand& command) {
  write_out(command.text);
  return 0;
}

int run_command(const Command& command) {
  return std::visit(
      [](const auto& verb) {
        if constexpr (std::is_same_v<std::decay_t<decltype(verb)>, TextCommand>) {
          return run_text(verb);
        } else {
          return run(verb);
        }
      },
      command);
}

// What a plan frees is used again by its next step, instead of going back to the system: the first touch of a page
// costs more than what is done with it.
void keep_freed_memory() {
#ifdef M_MMAP_THRESHOLD
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_TOP_PAD, 1 << 20);
#endif
}

int exit_code_of(const Error& error, bool is_verify) {
  const int code = info(error.code()).exit_code;
  const bool is_input = code == 1 || (code == 3 && error.code() != ErrorCode::IO_WRITE);
  return is_verify && is_input ? 2 : code;
}

// Prints the error and gives the exit code. 1 says "different" in verify, so that there a bad input is 2.
int report(const Error& error, bool json, bool is_verify) {
  if (json) {
    print_json({{"error", error_json(error)}});
    finish_output();
  } else {
    write_error(error);
  }
  return exit_code_of(error, is_verify);
}

}  // namespace

int run_program(std::vector<std::string> arguments) {
  keep_freed_memory();
  ignore_write_signals();
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  const bool is_verify = !arguments.empty() && arguments.front() == "verify";
  try {
    try {
      const int code = run_command(parse_arguments(std::move(arguments)));
      finish_output();
      return code;
    } catch (...) {
      return report(current_error(), json, is_verify);
    }
  } catch (...) {  // the error itself could not be printed
    return info(ErrorCode::IO_WRITE).exit_code;
  }
}

}  // namespace peft::cli
