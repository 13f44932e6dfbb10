// Reads the header of a GGUF file from front to back. Nothing is taken that the file does not have, and no more memory
// than for the text or the list of numbers at hand.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "peft/error.h"
#include "safetensors/reading/input_file.h"

namespace peft::gguf {

inline constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes, as for safetensors

class Cursor {
 public:
  using Read = std::function<void(std::uint64_t offset, std::span<char> bytes)>;  // fills all of `bytes`
  Cursor(const safetensors::FileFacts& file, Read read) : file_(file), read_(std::move(read)) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return file_.size - position_; }  // bytes of the file

  // The key or the tensor that is read: errors name it. "" for the file as a whole.
  void enter(std::string subject) { subject_ = std::move(subject); }
  const std::string& subject() const { return subject_; }
  [[noreturn]] void fail(ErrorCode code, ErrorReason reason) const;

  // Each throws GG_HEADER when the file ends before that, and GG_LIMIT when the header becomes too long. `what` is for
  // the message. A text is valid until the next call.
  std::string_view take(std::uint64_t count, std::string_view what);
  std::uint64_t length(std::string_view what);  // of a text that follows: not more than is left
  template <class Number>
  Number number(std::string_view what) {
    Number number;
    std::memcpy(&number, take(sizeof number, what).data(), sizeof number);
    return number;
  }

 private:
  void fill(std::uint64_t count);

  const safetensors::FileFacts& file_;
  Read read_;
  std::string subject_;
  std::string window_;  // bytes of the file from window_begin_
  std::uint64_t window_begin_ = 0;
  std::uint64_t position_ = 0;
};

}  // namespace peft::gguf
