#include "gguf/cursor.h"

#include <fmt/format.h>

#include <algorithm>

namespace peft::gguf {
namespace {

constexpr std::uint64_t kWindow = 64 << 10;
constexpr const char* kIncomplete = "the download is incomplete: fetch the file again";

}  // namespace

void Cursor::fail(ErrorCode code, ErrorReason reason) const { at(file_.path, subject_).fail(code, std::move(reason)); }

std::string_view Cursor::take(std::uint64_t count, std::string_view what) {
  if (count > left()) {
    fail(ErrorCode::GG_HEADER, {.problem = fmt::format("the file ends inside of {}", what),
                                .expected = fmt::format("{} bytes from byte {}", count, position_),
                                .got = fmt::format("{} bytes", left()),
                                .hint = kIncomplete});
  }
  if (count > kMaxHeader || position_ > kMaxHeader - count) {
    fail(ErrorCode::GG_LIMIT,
         {.problem = "the header is too long", .expected = fmt::format("at most {} bytes", kMaxHeader)});
  }
  if (position_ < window_begin_ || position_ + count > window_begin_ + window_.size()) fill(count);
  const std::string_view taken = std::string_view(window_).substr(position_ - window_begin_, count);
  position_ += count;
  return taken;
}

std::uint64_t Cursor::length(std::string_view what) {
  const auto length = number<std::uint64_t>(what);
  if (length <= left()) return length;
  fail(ErrorCode::GG_HEADER, {.problem = fmt::format("{} is larger than the rest of the file", what),
                              .expected = fmt::format("at most {} bytes", left()),
                              .got = fmt::format("{} bytes", length),
                              .hint = kIncomplete});
}

// What the window still has from the current position on is read again: less code, and little of it.
void Cursor::fill(std::uint64_t count) {
  window_.resize(std::min(left(), std::max(count, kWindow)));
  read_(position_, window_);
  window_begin_ = position_;
}

}  // namespace peft::gguf
