// Escapes, and sets in brackets.
#include "config/regex_parser.h"
#include "config/unicode.h"

namespace peft::config {
namespace {

constexpr std::u32string_view kOctal = U"01234567";
constexpr std::u32string_view kHex = U"0123456789abcdefABCDEF";
constexpr char32_t kMaxOctalEscape = 0377;

bool is_letter(char32_t c) { return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z'); }
bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
bool is_octal(char32_t c) { return c >= U'0' && c <= U'7'; }

char32_t number(std::u32string_view digits, unsigned base) {
  char32_t value = 0;
  for (const char32_t c : digits) {
    const char32_t lower = c | 0x20;
    value = value * base + (is_digit(c) ? c - U'0' : lower - U'a' + 10);
  }
  return value;
}

// \a \f \n \r \t \v \\ and, in a set, \b; 0 for others.
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

RegexNode category_node(char32_t letter) {
  RegexNode node = literal_node(0);
  node.items[0].category = static_cast<char>(letter);
  return node;
}

RegexNode position(RegexOp op) {
  RegexNode node;
  node.op = op;
  return node;
}

}  // namespace

RegexNode RegexParser::parse_escape(std::u32string_view escape, Where where) {
  const std::size_t from = source_.tell() - escape.size();
  const char32_t c = escape[1];
  if (std::u32string_view(U"dDsSwW").find(c) != std::u32string_view::npos) return category_node(c);
  if (where == Where::pattern) {
    if (c == U'A') return position(RegexOp::text_begin);
    if (c == U'Z') return position(RegexOp::text_end);
    if (c == U'b') return position(RegexOp::boundary);
    if (c == U'B') return position(RegexOp::not_boundary);
  }
  if (const char32_t simple = simple_escape(c, where == Where::set); simple != 0) return literal_node(simple);
  if (c == U'x') return literal_node(parse_hex(from, 2));
  if (c == U'u') return literal_node(parse_hex(from, 4));
  if (c == U'U') return literal_node(parse_hex(from, 8));
  if (c == U'N') return literal_node(parse_named_character());
  if (where == Where::pattern && is_digit(c) && c != U'0') return parse_number_escape(from, c);
  if (is_octal(c)) {
    source_.get_while(2, kOctal);
    return literal_node(octal_character(from));
  }
  if (is_digit(c) || is_letter(c)) throw bad_escape("bad escape ", from);
  return literal_node(c);
}

RegexError RegexParser::bad_escape(const char* what, std::size_t from) const {
  return RegexError("re.error", what + encode_utf8(source_.slice(from, source_.tell())), from);
}

char32_t RegexParser::parse_hex(std::size_t from, int digits) {
  const std::u32string_view text = source_.get_while(digits, kHex);
  if (static_cast<int>(text.size()) != digits) throw bad_escape("incomplete escape ", from);
  const char32_t value = number(text, 16);
  if (value > 0x10FFFF) throw bad_escape("bad escape ", from);
  return value;
}

char32_t RegexParser::octal_character(std::size_t from) const {
  const char32_t value = number(source_.slice(from + 1, source_.tell()), 8);
  if (value > kMaxOctalEscape) {
    throw RegexError(
        "re.error",
        "octal escape value " + encode_utf8(source_.slice(from, source_.tell())) + " outside of range 0-0o377", from);
  }
  return value;
}

// \N{EM DASH}
char32_t RegexParser::parse_named_character() {
  if (!source_.match(U'{')) throw source_.error("missing {");
  const std::u32string name = source_.get_until(U'}', "character name");
  const char32_t c = character_named(encode_utf8(name));
  if (c == 0) throw source_.error("undefined character name " + python_repr(name), name.size() + 4);
  return c;
}

// \1 to \99 refer to groups; three octal digits are a character.
RegexNode RegexParser::parse_number_escape(std::size_t from, char32_t first) {
  const auto next_is_digit = [this] { return source_.next().size() == 1 && is_digit(source_.next()[0]); };
  if (next_is_digit()) {
    const char32_t second = source_.get()[0];
    if (is_octal(first) && is_octal(second) && next_is_digit() && is_octal(source_.next()[0])) {
      source_.get();
      return literal_node(octal_character(from));
    }
  }
  const std::size_t length = source_.tell() - from;
  const int group = static_cast<int>(number(source_.slice(from + 1, source_.tell()), 10));
  if (group >= static_cast<int>(closed_.size())) {
    throw source_.error("invalid group reference " + std::to_string(group), length - 1);
  }
  if (!is_closed(group)) throw source_.error("cannot refer to an open group", length);
  check_lookbehind(group);
  return reference_node(group);
}

// After "[".
RegexNode RegexParser::parse_set() {
  const std::size_t here = source_.tell() - 1;
  const auto get = [&] {
    const std::u32string_view token = source_.get();
    if (token.empty()) throw RegexError("re.error", "unterminated character set", here);
    return token;
  };
  RegexNode set;
  set.op = RegexOp::set;
  set.width = {1, 1};
  if (source_.next_is(U'[')) warn_at("Possible nested set", source_.tell());
  set.negated = source_.match(U'^');
  while (true) {
    const std::u32string_view token = get();
    if (token == U"]" && !set.items.empty()) return set;
    if (!set.items.empty()) warn_set_operator(token);
    const SetItem low = parse_set_element(token);
    if (!source_.match(U'-')) {
      set.items.push_back(low);
      continue;
    }
    const std::u32string_view that = get();
    if (that == U"]") {
      set.items.push_back(low);
      set.items.push_back({U'-', U'-', 0});
      return set;
    }
    if (that == U"-") warn_at("Possible set difference", source_.tell() - 2);
    const SetItem high = parse_set_element(that);
    if (low.category != 0 || high.category != 0 || high.low < low.low) {
      throw source_.error("bad character range " + encode_utf8(token) + "-" + encode_utf8(that),
                          token.size() + 1 + that.size());
    }
    set.items.push_back({low.low, high.low, 0});
  }
}

SetItem RegexParser::parse_set_element(std::u32string_view token) {
  if (token[0] == U'\\') return parse_escape(token, Where::set).items[0];
  return {token[0], token[0], 0};
}

// Doubled operators may mean set algebra in a later Python.
void RegexParser::warn_set_operator(std::u32string_view token) {
  if (token.size() != 1 || !source_.next_is(token[0])) return;
  const std::size_t position = source_.tell() - 1;
  switch (token[0]) {
    case U'-':
      return warn_at("Possible set difference", position);
    case U'&':
      return warn_at("Possible set intersection", position);
    case U'~':
      return warn_at("Possible set symmetric difference", position);
    case U'|':
      return warn_at("Possible set union", position);
    default:
      return;
  }
}

void RegexParser::warn_at(const char* what, std::size_t position) {
  warn("FutureWarning", std::string(what) + " at position " + std::to_string(position));
}

}  // namespace peft::config
