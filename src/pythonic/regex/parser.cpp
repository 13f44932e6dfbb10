#include "pythonic/regex/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "pythonic/unicode.h"

namespace peft::pythonic {
namespace {

RegexError pattern_error(std::string message, std::optional<std::size_t> position) {
  return RegexError("re.error", std::move(message), position);
}

constexpr std::u32string_view kDigits = U"0123456789";

RegexWidth width_of_repeat(const RegexNode& repeat) {
  const RegexWidth inner = width_of(repeat.children[0]);
  const bool endless = repeat.high == kUnlimited && inner.most > 0;
  return {saturating_multiply(inner.least, repeat.low),
          endless ? kWidest : saturating_multiply(inner.most, repeat.high)};
}

std::uint64_t parse_count(std::u32string_view digits) {
  std::uint64_t value = 0;
  for (const char32_t c : digits) value = std::min(value * 10 + (c - U'0'), kUnlimited);
  if (value >= kUnlimited) throw RegexError("OverflowError", "the repetition number is too large", std::nullopt);
  return value;
}

constexpr int kMaxGroups = 1073741823;  // Python's MAXGROUPS

constexpr std::u32string_view kOctal = U"01234567";
constexpr std::u32string_view kHex = U"0123456789abcdefABCDEF";
constexpr char32_t kMaxOctalEscape = 0377;

}  // namespace

RegexTree RegexParser::parse() {
  tree_.root = parse_alternatives(false, 0);
  if (!source_.next().empty()) throw source_.error("unbalanced parenthesis");
  for (const auto& [group, position] : conditions_) {
    if (group >= static_cast<int>(closed_.size())) {
      throw pattern_error("invalid group reference " + std::to_string(group), position);
    }
  }
  if ((tree_.flags & kAscii) != 0) tree_.flags &= ~static_cast<unsigned>(kUnicode);
  tree_.groups = static_cast<int>(closed_.size()) - 1;
  check_compiled(tree_.root);
  return std::move(tree_);
}

// a|b|c
RegexSequence RegexParser::parse_alternatives(bool verbose, int depth) {
  if (depth > kMaxRegexDepth) {
    throw RegexError("RecursionError", "groups are nested too deeply", source_.tell());
  }
  std::vector<RegexSequence> alternatives;
  do {
    alternatives.push_back(parse_sequence(verbose, depth, depth == 0 && alternatives.empty()));
    if (depth == 0) verbose = (tree_.flags & kVerbose) != 0;  // global flags may have come first
  } while (source_.match(U'|'));
  if (alternatives.size() == 1) return std::move(alternatives[0]);

  RegexNode branch;
  branch.op = RegexOp::branch;
  branch.width = width_of(alternatives[0]);
  for (const RegexSequence& alternative : alternatives) {
    const RegexWidth width = width_of(alternative);
    branch.width = {std::min(branch.width.least, width.least), std::max(branch.width.most, width.most)};
  }
  branch.children = std::move(alternatives);
  RegexSequence sequence;
  sequence.push_back(std::move(branch));
  return sequence;
}

RegexSequence RegexParser::parse_sequence(bool verbose, int depth, bool first) {
  RegexSequence sequence;
  while (!source_.next().empty() && !source_.next_is(U'|') && !source_.next_is(U')')) {
    const std::u32string_view token = source_.get();
    const char32_t c = token[0];
    if (verbose && skip_verbose(token)) continue;
    if (c == U'\\') {
      sequence.push_back(parse_escape(token, Where::pattern));
    } else if (!is_special(c)) {
      sequence.push_back(literal_node(c));
    } else if (c == U'[') {
      sequence.push_back(parse_set());
    } else if (c == U'.') {
      sequence.push_back(position_node(RegexOp::any));
      sequence.back().width = {1, 1};
    } else if (c == U'^') {
      sequence.push_back(position_node(RegexOp::line_begin));
    } else if (c == U'$') {
      sequence.push_back(position_node(RegexOp::line_end));
    } else if (c == U'(') {
      parse_group(sequence, depth, first, verbose);
    } else {
      parse_repeat(sequence, c);
    }
  }
  return sequence;
}

// White space and comments of (?x).
bool RegexParser::skip_verbose(std::u32string_view token) {
  if (token.size() == 1 && std::u32string_view(U" \t\n\r\v\f").find(token[0]) != std::u32string_view::npos) return true;
  if (token != U"#") return false;
  while (true) {
    const std::u32string_view skipped = source_.get();
    if (skipped.empty() || skipped == U"\n") return true;
  }
}

void RegexParser::parse_repeat(RegexSequence& sequence, char32_t quantifier) {
  const std::size_t here = source_.tell();
  std::uint64_t low = quantifier == U'+' ? 1 : 0;
  std::uint64_t high = quantifier == U'?' ? 1 : kUnlimited;
  if (quantifier == U'{' && !parse_counts(here, low, high)) {
    sequence.push_back(literal_node(U'{'));
    return;
  }
  if (sequence.empty() || sequence.back().is_position()) {
    throw pattern_error("nothing to repeat", here - 1);
  }
  if (sequence.back().op == RegexOp::repeat) throw pattern_error("multiple repeat", here - 1);

  RegexNode repeat;
  repeat.op = RegexOp::repeat;
  repeat.low = low;
  repeat.high = high;
  if (source_.match(U'?')) {
    repeat.greed = RegexGreed::lazy;
  } else if (source_.match(U'+')) {
    repeat.greed = RegexGreed::possessive;
  }
  repeat.children.resize(1);
  repeat.children[0].push_back(std::move(sequence.back()));
  repeat.width = width_of_repeat(repeat);
  sequence.back() = std::move(repeat);
}

// {3} {3,} {,3} {3,4}; anything else is a literal brace: false, and nothing is taken.
bool RegexParser::parse_counts(std::size_t here, std::uint64_t& low, std::uint64_t& high) {
  if (source_.next_is(U'}')) return false;
  constexpr int kAll = 1 << 30;
  const std::u32string_view low_digits = source_.get_while(kAll, kDigits);
  const std::u32string_view high_digits = source_.match(U',') ? source_.get_while(kAll, kDigits) : low_digits;
  if (!source_.match(U'}')) {
    source_.seek(here);
    return false;
  }
  if (!low_digits.empty()) low = parse_count(low_digits);
  if (!high_digits.empty()) {
    high = parse_count(high_digits);
    if (high < low) throw pattern_error("min repeat greater than max repeat", here);
  }
  return true;
}

// What Python finds only when it compiles the parsed pattern; no position is known then.
void RegexParser::check_compiled(const RegexSequence& sequence) const {
  constexpr std::uint64_t kMaxLookBehind = 4294967295;
  for (const RegexNode& node : sequence) {
    if (node.op == RegexOp::repeat && (tree_.flags & kTemplate) != 0) {
      constexpr const char* kNames[] = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"};
      throw pattern_error(
          std::string("internal: unsupported template operator ") + kNames[static_cast<int>(node.greed)], std::nullopt);
    }
    if (node.op == RegexOp::look && node.behind) {
      const RegexWidth width = width_of(node.children[0]);
      if (width.least > kMaxLookBehind) throw pattern_error("looks too much behind", std::nullopt);
      if (width.least != width.most) {
        throw pattern_error("look-behind requires fixed-width pattern", std::nullopt);
      }
    }
    for (const RegexSequence& child : node.children) check_compiled(child);
  }
}

void RegexParser::parse_group(RegexSequence& sequence, int depth, bool first, bool& verbose) {
  const std::size_t start = source_.tell() - 1;
  RegexNode group;
  group.op = RegexOp::group;
  group.number = -1;  // captures, unless an extension says otherwise
  std::u32string name;
  if (source_.match(U'?') && !parse_extension(sequence, depth, first, verbose, group, name)) return;
  if (group.number < 0) group.number = open_group(name);

  const bool inner_verbose = (verbose || (group.flags_on & kVerbose) != 0) && (group.flags_off & kVerbose) == 0;
  group.children.push_back(parse_alternatives(inner_verbose, depth + 1));
  expect_close(start);
  group.width = width_of(group.children[0]);
  if (group.number > 0) closed_[group.number] = group.width;
  sequence.push_back(std::move(group));
}

// What follows "(?". True: the body of `group` comes next. False: all is done.
bool RegexParser::parse_extension(RegexSequence& sequence, int depth, bool first, bool& verbose, RegexNode& group,
                                  std::u32string& name) {
  const std::size_t start = source_.tell() - 2;
  const std::u32string_view token = source_.get();
  if (token.empty()) throw source_.error("unexpected end of pattern");
  if (token == U"P") return parse_python_extension(sequence, name);
  if (token == U"#") {
    skip_comment(start);
    return false;
  }
  if (token == U"=" || token == U"!" || token == U"<") {
    sequence.push_back(parse_look(token[0], start, verbose, depth));
    return false;
  }
  if (token == U"(") {
    sequence.push_back(parse_conditional(start, verbose, depth));
    return false;
  }
  group.number = 0;
  if (token == U":") return true;
  if (token == U">") {
    group.op = RegexOp::atomic;
    return true;
  }
  if (!is_flag(token) && token != U"-") {
    throw source_.error("unknown extension ?" + encode_utf8(token), token.size() + 1);
  }
  if (parse_flags(token, group.flags_on, group.flags_off)) return true;
  if (!first || !sequence.empty()) {
    throw pattern_error("global flags not at the start of the expression", start);
  }
  verbose = (tree_.flags & kVerbose) != 0;
  return false;
}

// (?P<name>...) or (?P=name)
bool RegexParser::parse_python_extension(RegexSequence& sequence, std::u32string& name) {
  if (source_.match(U'<')) {
    name = source_.get_until(U'>', "group name");
    check_group_name(name);
    return true;
  }
  if (!source_.match(U'=')) {
    const std::u32string_view token = source_.get();
    if (token.empty()) throw source_.error("unexpected end of pattern");
    throw source_.error("unknown extension ?P" + encode_utf8(token), token.size() + 2);
  }
  name = source_.get_until(U')', "group name");
  check_group_name(name);
  const int number = named_group(name);
  if (!is_closed(number)) throw source_.error("cannot refer to an open group", name.size() + 1);
  check_lookbehind(number);
  sequence.push_back(reference_node(number));
  return false;
}

void RegexParser::skip_comment(std::size_t start) {
  while (true) {
    if (source_.next().empty()) {
      throw pattern_error("missing ), unterminated comment", start);
    }
    if (source_.get() == U")") return;
  }
}

RegexNode RegexParser::parse_look(char32_t kind, std::size_t start, bool verbose, int depth) {
  RegexNode look;
  look.op = RegexOp::look;
  look.behind = kind == U'<';
  if (look.behind) {
    const std::u32string_view token = source_.get();
    if (token.empty()) throw source_.error("unexpected end of pattern");
    if (token != U"=" && token != U"!") {
      throw source_.error("unknown extension ?<" + encode_utf8(token), token.size() + 2);
    }
    kind = token[0];
  }
  look.negated = kind == U'!';
  const int groups_before = lookbehind_groups_;
  if (look.behind && groups_before < 0) lookbehind_groups_ = static_cast<int>(closed_.size());
  look.children.push_back(parse_alternatives(verbose, depth + 1));
  lookbehind_groups_ = groups_before;
  expect_close(start);
  return look;
}

// (?(group)yes|no)
RegexNode RegexParser::parse_conditional(std::size_t start, bool verbose, int depth) {
  if (depth >= kMaxRegexDepth) throw RegexError("RecursionError", "groups are nested too deeply", source_.tell());
  RegexNode node;
  node.op = RegexOp::conditional;
  node.number = conditional_group();
  check_lookbehind(node.number);
  node.children.push_back(parse_sequence(verbose, depth + 1, false));
  node.width = width_of(node.children[0]);
  if (source_.match(U'|')) {
    node.children.push_back(parse_sequence(verbose, depth + 1, false));
    if (source_.next_is(U'|')) throw source_.error("conditional backref with more than two branches");
    const RegexWidth no = width_of(node.children[1]);
    node.width = {std::min(node.width.least, no.least), std::max(node.width.most, no.most)};
  } else {
    node.width.least = 0;
  }
  expect_close(start);
  return node;
}

int RegexParser::conditional_group() {
  const std::u32string name = source_.get_until(U')', "group name");
  if (is_identifier(name)) return named_group(name);
  const std::optional<std::int64_t> number = python_int(name);
  if (!number || *number < 0) {
    throw source_.error("bad character in group name " + python_repr(name), name.size() + 1);
  }
  if (*number == 0) throw source_.error("bad group number", name.size() + 1);
  if (*number >= kMaxGroups) {
    throw source_.error("invalid group reference " + std::to_string(*number), name.size() + 1);
  }
  const std::size_t position = source_.tell() - name.size() - 1;
  conditions_.emplace_back(static_cast<int>(*number), position);
  if (name.find_first_not_of(U"0123456789") != name.npos) {
    warn("DeprecationWarning",
         fmt::format("bad character in group name {} at position {}", python_repr(name), position));
  }
  return static_cast<int>(*number);
}

int RegexParser::open_group(const std::u32string& name) {
  const int number = static_cast<int>(closed_.size());
  closed_.emplace_back();
  if (name.empty()) return number;
  const auto [found, is_new] = numbers_.emplace(name, number);
  if (!is_new) {
    throw source_.error(fmt::format("redefinition of group name {} as group {}; was group {}", python_repr(name),
                                    number, found->second),
                        name.size() + 1);
  }
  tree_.names.emplace_back(encode_utf8(name), number);
  return number;
}

void RegexParser::check_group_name(const std::u32string& name) {
  if (!is_identifier(name)) throw source_.error("bad character in group name " + python_repr(name), name.size() + 1);
}

int RegexParser::named_group(const std::u32string& name) const {
  const auto found = numbers_.find(name);
  if (found == numbers_.end()) throw source_.error("unknown group name " + python_repr(name), name.size() + 1);
  return found->second;
}

void RegexParser::check_lookbehind(int group) const {
  if (lookbehind_groups_ < 0) return;
  if (!is_closed(group)) throw source_.error("cannot refer to an open group");
  if (group >= lookbehind_groups_) {
    throw source_.error("cannot refer to group defined in the same lookbehind subpattern");
  }
}

void RegexParser::expect_close(std::size_t start) {
  if (!source_.match(U')')) throw pattern_error("missing ), unterminated subpattern", start);
}

RegexNode RegexParser::reference_node(int group) const {
  RegexNode node;
  node.op = RegexOp::reference;
  node.number = group;
  node.width = *closed_[group];
  return node;
}

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

RegexNode RegexParser::parse_escape(std::u32string_view escape, Where where) {
  const std::size_t from = source_.tell() - escape.size();
  const char32_t c = escape[1];
  if (std::u32string_view(U"dDsSwW").find(c) != std::u32string_view::npos) return category_node(c);
  if (where == Where::pattern) {
    if (c == U'A') return position_node(RegexOp::text_begin);
    if (c == U'Z') return position_node(RegexOp::text_end);
    if (c == U'b') return position_node(RegexOp::boundary);
    if (c == U'B') return position_node(RegexOp::not_boundary);
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
  return pattern_error(what + encode_utf8(source_.slice(from, source_.tell())), from);
}

char32_t RegexParser::parse_hex(std::size_t from, int digits) {
  const std::u32string_view text = source_.get_while(digits, kHex);
  if (static_cast<int>(text.size()) != digits) throw bad_escape("incomplete escape ", from);
  const char32_t value = number_of(text, 16);
  if (value > 0x10FFFF) throw bad_escape("bad escape ", from);
  return value;
}

char32_t RegexParser::octal_character(std::size_t from) const {
  const char32_t value = number_of(source_.slice(from + 1, source_.tell()), 8);
  if (value > kMaxOctalEscape) {
    throw pattern_error(
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
  const int group = static_cast<int>(number_of(source_.slice(from + 1, source_.tell()), 10));
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
    if (token.empty()) throw pattern_error("unterminated character set", here);
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

}  // namespace peft::pythonic
