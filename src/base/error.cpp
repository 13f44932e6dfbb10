#include "peft/error.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/text.h"

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

struct Range {
  char32_t first, last;
};

// What can move the cursor, recolour or reorder a terminal line, or hide: C0, DEL and C1 controls, zero-width and
// bidirectional marks, line separators, the byte order mark, interlinear and tag characters.
constexpr Range kUnsafe[] = {{0x00, 0x1F},     {0x7F, 0x9F},     {0xAD, 0xAD},      {0x61C, 0x61C},
                             {0x180E, 0x180E}, {0x200B, 0x200F}, {0x2028, 0x202E},  {0x2060, 0x206F},
                             {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F}};

bool unsafe(char32_t point) {
  return std::any_of(std::begin(kUnsafe), std::end(kUnsafe),
                     [point](Range range) { return point >= range.first && point <= range.last; });
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

std::string printable(std::string_view untrusted, std::size_t limit) {
  std::string text;
  std::size_t characters = 0;
  for (std::size_t i = 0; i < untrusted.size(); ++characters) {
    if (characters == limit) {
      text += fmt::format("... ({} bytes in all)", untrusted.size());
      break;
    }
    const Utf8Step step = utf8_step(untrusted.substr(i, 4));
    if (step.length == 0) {
      text += fmt::format("\\x{{{:02x}}}", static_cast<unsigned char>(untrusted[i]));
      ++i;
      continue;
    }
    if (unsafe(step.code_point)) {
      text += fmt::format("\\u{{{:x}}}", static_cast<std::uint32_t>(step.code_point));
    } else {
      text += untrusted.substr(i, step.length);
    }
    i += step.length;
  }
  return text;
}

std::string in_quotes(std::string_view untrusted) { return "\"" + printable(untrusted) + "\""; }

}  // namespace peft
