#include "peft/error.h"

#include <array>
#include <cstdint>

namespace peft {
namespace {

constexpr std::array kCodes = {
#define PEFT_ERROR(code, exit_code, meaning) ErrorCodeInfo{ErrorCode::code, #code, exit_code, meaning},
#include "peft/error_codes.inc"
#undef PEFT_ERROR
};

std::string compose(ErrorCode code, const ErrorDetail& detail) {
  std::string text = std::string(Error::kWord) + "[" + std::string(info(code).name) + "]";
  if (!detail.file.empty()) text += " " + printable(detail.file, 4096);
  if (!detail.tensor.empty()) text += (detail.file.empty() ? " \"" : ": \"") + printable(detail.tensor) + "\"";
  text += ": " + printable(detail.problem, 4096);
  if (!detail.expected.empty()) text += ": expected " + printable(detail.expected, 1024);
  if (!detail.got.empty()) text += (detail.expected.empty() ? ": got " : ", got ") + printable(detail.got, 1024);
  if (!detail.python_error.empty()) text += " (PEFT raises " + printable(detail.python_error) + ")";
  if (!detail.hint.empty()) text += ". hint: " + printable(detail.hint, 1024);
  return text;
}

}  // namespace

std::span<const ErrorCodeInfo> error_codes() { return kCodes; }

const ErrorCodeInfo& info(ErrorCode code) { return kCodes[static_cast<std::size_t>(code)]; }

Error::Error(ErrorCode code, ErrorDetail detail)
    : code_(code), detail_(std::move(detail)), message_(compose(code_, detail_)) {}

void ErrorPlace::fail(ErrorCode code, ErrorReason reason) const {
  throw Error(code, {.file = file,
                     .tensor = tensor,
                     .problem = std::move(reason.problem),
                     .expected = std::move(reason.expected),
                     .got = std::move(reason.got),
                     .hint = std::move(reason.hint),
                     .python_error = std::move(reason.python_error)});
}

ErrorPlace at(std::string file, std::string tensor) { return {std::move(file), std::move(tensor)}; }

}  // namespace peft
