#include "pythonic/regex/source.h"

#include <algorithm>
#include <limits>

#include "pythonic/regex/tree.h"
#include "pythonic/unicode.h"

namespace peft::pythonic {

RegexSource::RegexSource(std::u32string pattern) : pattern_(std::move(pattern)) { advance(); }

void RegexSource::advance() {
  if (index_ >= pattern_.size()) {
    next_ = {};
    return;
  }
  const std::size_t length = pattern_[index_] == U'\\' ? 2 : 1;
  if (index_ + length > pattern_.size()) {
    throw RegexError("re.error", "bad escape (end of pattern)", pattern_.size() - 1);
  }
  next_ = std::u32string_view(pattern_).substr(index_, length);
  index_ += length;
}

std::u32string_view RegexSource::get() {
  const std::u32string_view got = next_;
  advance();
  return got;
}

bool RegexSource::match(char32_t c) {
  if (!next_is(c)) return false;
  advance();
  return true;
}

std::u32string_view RegexSource::get_while(int count, std::u32string_view set) {
  const std::size_t from = tell();
  for (; count > 0 && next_.size() == 1 && set.find(next_[0]) != set.npos; --count) advance();
  return slice(from, tell());
}

std::u32string RegexSource::get_until(char32_t terminator, const std::string& what) {
  std::u32string result;
  while (true) {
    const bool last = next_is(terminator);
    const std::u32string_view got = get();
    if (got.empty()) {
      if (result.empty()) throw error("missing " + what);
      throw error("missing " + std::string(1, static_cast<char>(terminator)) + ", unterminated name", result.size());
    }
    if (last) {
      if (result.empty()) throw error("missing " + what, 1);
      return result;
    }
    result += got;
  }
}

void RegexSource::seek(std::size_t index) {
  index_ = index;
  advance();
}

std::u32string_view RegexSource::slice(std::size_t from, std::size_t to) const {
  return std::u32string_view(pattern_).substr(from, to - from);
}

RegexError RegexSource::error(std::string message, std::size_t back) const {
  return RegexError("re.error", std::move(message), tell() - back);
}

bool is_special(char32_t c) { return std::u32string_view(U".\\[{()*+?^$|").find(c) != std::u32string_view::npos; }

bool is_identifier(const std::u32string& name) {
  return !name.empty() && is_identifier_start(name[0]) && std::all_of(name.begin(), name.end(), is_identifier_part);
}

bool is_alphabetic_token(std::u32string_view token) { return token.size() == 1 && is_alphabetic(token[0]); }

unsigned flag_of(std::u32string_view token) {
  if (token.size() != 1) return 0;
  switch (token[0]) {
    case U'i':
      return kIgnoreCase;
    case U'm':
      return kMultiLine;
    case U's':
      return kDotAll;
    case U'x':
      return kVerbose;
    case U'a':
      return kAscii;
    case U'u':
      return kUnicode;
    case U't':
      return kTemplate;
    default:
      return 0;
  }
}

bool is_flag(std::u32string_view token) { return flag_of(token) != 0 || token == U"L"; }

char32_t simple_escape(char32_t c, bool in_set) {
  switch (c) {
    case U'a':
      return 7;
    case U'b':
      return in_set ? 8 : 0;
    case U'f':
      return 12;
    case U'n':
      return 10;
    case U'r':
      return 13;
    case U't':
      return 9;
    case U'v':
      return 11;
    case U'\\':
      return U'\\';
    default:
      return 0;
  }
}

char32_t number_of(std::u32string_view digits, unsigned base) {
  char32_t value = 0;
  for (const char32_t c : digits) {
    const char32_t lower = c | 0x20;
    value = value * base + (is_digit(c) ? c - U'0' : lower - U'a' + 10);
  }
  return value;
}

std::optional<std::int64_t> python_int(std::u32string text) {
  const auto is_space = [](char32_t c) { return c == U' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty() && is_space(text.back())) text.pop_back();
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  const bool negative = !text.empty() && text[0] == U'-';
  if (!text.empty() && (text[0] == U'-' || text[0] == U'+')) text.erase(0, 1);
  if (text.empty() || text.back() == U'_') return std::nullopt;
  std::int64_t value = 0;
  char32_t before = U'_';
  for (const char32_t c : text) {
    if (c == U'_' && before == U'_') return std::nullopt;
    if (c != U'_' && (c < U'0' || c > U'9')) return std::nullopt;
    if (c != U'_')
      value = std::min<std::int64_t>(value * 10 + (c - U'0'), std::numeric_limits<std::int64_t>::max() / 16);
    before = c;
  }
  return negative ? -value : value;
}

}  // namespace peft::pythonic
