#include "cli/report.h"

#include <unistd.h>

#include <new>

#include "cli/json_output.h"
#include "cli/output.h"

namespace peft::cli {
namespace {

int exit_code_of(const Error& error, bool is_verify) {
  const int code = info(error.code()).exit_code;
  const bool is_input = code == 1 || (code == 3 && error.code() != ErrorCode::IO_WRITE);
  return is_verify && is_input ? 2 : code;
}

}  // namespace

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::OUT_MEMORY, {.problem = "out of memory"});
  } catch (const std::exception& error) {
    return Error(ErrorCode::INTERNAL, {.problem = error.what(), .hint = "please report this, with the command line"});
  }
}

int report(const Error& error, bool json, bool is_verify) {
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

}  // namespace peft::cli
