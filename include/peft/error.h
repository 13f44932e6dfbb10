// One exception type for everything that can go wrong with a file, a config or a request.
//
//   error[ST_HDRLEN] adapter_model.safetensors: header is longer than the file: expected at most 120 bytes, got 4096.
//   hint: ...
//
// The table of codes (name, exit code, meaning) is error_codes.inc; docs/errors.md is generated from it.
#pragma once

#include <exception>
#include <span>
#include <string>
#include <string_view>

namespace peft {

enum class ErrorCode {
#define PEFT_ERROR(code, exit_code, meaning) code,
#include "peft/error_codes.inc"
#undef PEFT_ERROR
};

struct ErrorCodeInfo {
  ErrorCode code;
  std::string_view name;     // "ST_HDRLEN", as printed and as in JSON
  int exit_code;             // of the command line: 1 bad input, 2 usage, 3 I/O or space, 4 internal, 5 interrupted
  std::string_view meaning;  // one line
};

std::span<const ErrorCodeInfo> error_codes();
const ErrorCodeInfo& info(ErrorCode code);

// What an error knows. Fields that do not apply stay empty. Untrusted text goes in raw: message() escapes it.
struct ErrorDetail {
  std::string file{};      // path of the file
  std::string tensor{};    // tensor, config key or module name the error is about
  std::string problem{};   // what is wrong, lower case, no full stop
  std::string expected{};  // numbers exact
  std::string got{};
  std::string hint{};          // one action that helps
  std::string python_error{};  // the exception that PEFT raises here, such as "ValueError"
};

class Error : public std::exception {
 public:
  Error(ErrorCode code, ErrorDetail detail);
  ErrorCode code() const { return code_; }
  const ErrorDetail& detail() const { return detail_; }
  // kWord and text(): "error", and "[ST_HDRLEN] adapter_model.safetensors: ..." after it.
  const char* what() const noexcept override { return message_.c_str(); }
  std::string_view text() const { return std::string_view(message_).substr(kWord.size()); }
  static constexpr std::string_view kWord = "error";

 private:
  ErrorCode code_;
  ErrorDetail detail_;
  std::string message_;
};

// What is wrong at a place that is known.
struct ErrorReason {
  std::string problem{}, expected{}, got{}, hint{}, python_error{};  // as in ErrorDetail
};

// The place that errors are about. A reader of a file or a tensor makes it once:
//   const ErrorPlace here = at(path, name);
//   here.fail(ErrorCode::ST_SHAPE, {.problem = "the shape does not fit", .expected = "[3, 4]", .got = "[4, 3]"});
struct ErrorPlace {
  std::string file{}, tensor{};  // as in ErrorDetail

  [[noreturn]] void fail(ErrorCode code, ErrorReason reason) const;
};
ErrorPlace at(std::string file, std::string tensor = {});

// Text from a file, safe for a terminal: control, escape and bidi characters become \u{..}, longer than
// `limit` characters is cut and its full length named. Invalid UTF-8 bytes become \x{..}.
std::string printable(std::string_view untrusted, std::size_t limit = 200);
std::string in_quotes(std::string_view untrusted);  // printable, between quotation marks

}  // namespace peft
