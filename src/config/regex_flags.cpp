// The letters of (?i), (?i:...) and (?-i:...).
#include "config/regex_parser.h"
#include "config/unicode.h"

namespace peft::config {
namespace {

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

bool is_alphabetic_token(std::u32string_view token) { return token.size() == 1 && is_alphabetic(token[0]); }

}  // namespace

bool RegexParser::is_flag(std::u32string_view token) { return flag_of(token) != 0 || token == U"L"; }

// True: flags of a group, up to ":". False: global flags, up to ")".
bool RegexParser::parse_flags(std::u32string_view first, unsigned& on, unsigned& off) {
  std::u32string_view stop = first;
  if (first != U"-") stop = parse_flags_on(first, on);
  if (stop == U")") {
    tree_.flags |= on;
    return false;
  }
  if ((on & kTemplate) != 0) throw source_.error("bad inline flags: cannot turn on global flag", 1);
  if (stop == U"-") off = parse_flags_off();
  if ((off & kTemplate) != 0) throw source_.error("bad inline flags: cannot turn off global flag", 1);
  if ((on & off) != 0) throw source_.error("bad inline flags: flag turned on and off", 1);
  return true;
}

std::u32string_view RegexParser::parse_flags_on(std::u32string_view token, unsigned& on) {
  while (true) {
    if (token == U"L") throw source_.error("bad inline flags: cannot use 'L' flag with a str pattern");
    const unsigned flag = flag_of(token);
    on |= flag;
    if ((flag & kTypeFlags) != 0 && (on & kTypeFlags) != flag) {
      throw source_.error("bad inline flags: flags 'a', 'u' and 'L' are incompatible");
    }
    token = source_.get();
    if (token.empty()) throw source_.error("missing -, : or )");
    if (token == U")" || token == U"-" || token == U":") return token;
    if (!is_flag(token)) {
      throw source_.error(is_alphabetic_token(token) ? "unknown flag" : "missing -, : or )", token.size());
    }
  }
}

unsigned RegexParser::parse_flags_off() {
  unsigned off = 0;
  std::u32string_view token = source_.get();
  if (token.empty()) throw source_.error("missing flag");
  if (!is_flag(token)) throw source_.error(is_alphabetic_token(token) ? "unknown flag" : "missing flag", token.size());
  while (true) {
    if (token == U"L" || (flag_of(token) & kTypeFlags) != 0) {
      throw source_.error("bad inline flags: cannot turn off flags 'a', 'u' and 'L'");
    }
    off |= flag_of(token);
    token = source_.get();
    if (token.empty()) throw source_.error("missing :");
    if (token == U":") return off;
    if (!is_flag(token)) throw source_.error(is_alphabetic_token(token) ? "unknown flag" : "missing :", token.size());
  }
}

}  // namespace peft::config
