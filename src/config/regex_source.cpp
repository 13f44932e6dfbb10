#include "config/regex_source.h"

namespace peft::config {

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

}  // namespace peft::config
