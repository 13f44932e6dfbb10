// peft: the command line. Parses, runs one verb, turns what goes wrong into one line and an exit code.
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <new>

#include "cli/arguments.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/output.h"
#include "peft/error.h"

namespace {

using peft::Error;
using peft::ErrorCode;

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

// 1 says "different" in verify, so that an input that is bad, or not there, is 2.
int exit_code_of(const Error& error, bool is_verify) {
  const int code = peft::info(error.code()).exit_code;
  const bool is_input = code == 1 || (code == 3 && error.code() != ErrorCode::IO_WRITE);
  return is_verify && is_input ? 2 : code;
}

int report(const Error& error, bool json, bool is_verify) {
  using namespace peft::cli;
  if (json) {
    print_json({{"error", error_json(error)}});
    finish_output();
  } else {
    const std::string line = error.what();
    const std::string_view word = "error";
    write_err(red(word, STDERR_FILENO) + line.substr(word.size()) + "\n");
  }
  return exit_code_of(error, is_verify);
}

// Every exception as an Error: what the standard library throws is either memory or a bug of ours.
Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::OUT_SPACE, {.problem = "out of memory"});
  } catch (const std::exception& error) {
    return Error(ErrorCode::INTERNAL, {.problem = error.what(), .hint = "please report this, with the command line"});
  }
}

}  // namespace

int main(int argc, char** argv) {
  peft::cli::ignore_write_signals();
  std::vector<std::string> arguments(argv + 1, argv + std::max(argc, 1));
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  const bool is_verify = !arguments.empty() && arguments.front() == "verify";
  try {
    try {
      const int code = run_command(peft::cli::parse_arguments(std::move(arguments)));
      peft::cli::finish_output();
      return code;
    } catch (...) {
      return report(current_error(), json, is_verify);
    }
  } catch (...) {  // the error itself could not be printed
    return peft::info(ErrorCode::IO_WRITE).exit_code;
  }
}
