// The pattern as Python's parser reads it: one character at a time, an escape's two characters as one.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace peft::pythonic {

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

// ---- What single tokens mean

inline bool is_letter(char32_t c) { return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z'); }
inline bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
inline bool is_octal(char32_t c) { return c >= U'0' && c <= U'7'; }
bool is_special(char32_t c);  // has a meaning outside of sets: . \ [ { ( ) * + ? ^ $ |
bool is_identifier(const std::u32string& name);
bool is_alphabetic_token(std::u32string_view token);

// The flag of a letter in (?i), 0 for other tokens. "L" is a flag too, which patterns of type str cannot have.
unsigned flag_of(std::u32string_view token);
bool is_flag(std::u32string_view token);

// The character of \a \f \n \r \t \v \\ and, in a set, \b; 0 for others.
char32_t simple_escape(char32_t c, bool in_set);
// The value of digits, which are valid for the base.
char32_t number_of(std::u32string_view digits, unsigned base);
// Python's int(text), without the digits of other scripts: nullopt where it raises. Large values are capped.
std::optional<std::int64_t> python_int(std::u32string text);

}  // namespace peft::pythonic
