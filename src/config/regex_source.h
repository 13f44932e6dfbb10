// The pattern as Python's parser reads it: one character at a time, an escape's two characters as one.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace peft::config {

// What Python raises for a pattern: re.error, or OverflowError for a count.
struct RegexError : std::exception {
  RegexError(std::string kind_of_error, std::string text, std::optional<std::size_t> where)
      : kind(std::move(kind_of_error)), message(std::move(text)), position(where) {}
  const char* what() const noexcept override { return message.c_str(); }

  std::string kind;  // "re.error"
  std::string message;
  std::optional<std::size_t> position;  // in characters
};

class RegexSource {
 public:
  explicit RegexSource(std::u32string pattern);

  std::u32string_view next() const { return next_; }  // empty at the end
  bool next_is(char32_t c) const { return next_.size() == 1 && next_[0] == c; }
  std::u32string_view get();
  bool match(char32_t c);
  // Up to `count` characters of `set`.
  std::u32string_view get_while(int count, std::u32string_view set);
  // What stands before `terminator`, which is taken too; `what` names it in errors ("group name").
  std::u32string get_until(char32_t terminator, const std::string& what);

  std::size_t tell() const { return index_ - next_.size(); }
  void seek(std::size_t index);
  std::u32string_view slice(std::size_t from, std::size_t to) const;

  // The error at `back` characters before the current position.
  RegexError error(std::string message, std::size_t back = 0) const;

 private:
  void advance();

  std::u32string pattern_;
  std::size_t index_ = 0;
  std::u32string_view next_;
};

}  // namespace peft::config
