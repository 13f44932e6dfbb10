// peft, and peft-torch: the command line. Parses, runs one verb, turns what goes wrong into one line and an exit code.
#include <malloc.h>

#include <algorithm>

#include "cli/arguments.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"

namespace {

int run_text(const peft::cli::TextCommand& command) {
  peft::cli::write_out(command.text);
  return 0;
}

int run_command(const peft::cli::Command& command) {
  return std::visit(
      [](const auto& verb) {
        if constexpr (std::is_same_v<std::decay_t<decltype(verb)>, peft::cli::TextCommand>) {
          return run_text(verb);
        } else {
          return peft::cli::run(verb);
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

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  peft::cli::ignore_write_signals();
  std::vector<std::string> arguments(argv + 1, argv + std::max(argc, 1));
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  const std::string verb = arguments.empty() ? std::string() : arguments.front();
  const bool one_is_an_answer = verb == "verify" || verb == "doctor";
  try {
    try {
      const int code = run_command(peft::cli::parse_arguments(std::move(arguments)));
      peft::cli::finish_output();
      return code;
    } catch (...) {
      return peft::cli::report(peft::cli::current_error(), json, one_is_an_answer);
    }
  } catch (...) {  // the error itself could not be printed
    return peft::info(peft::ErrorCode::IO_WRITE).exit_code;
  }
}
