// Everything that starts with "(".
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "config/regex_parser.h"
#include "config/unicode.h"

namespace peft::config {
namespace {

constexpr int kMaxGroups = 1073741823;  // Python's MAXGROUPS

bool is_identifier(const std::u32string& name) {
  return !name.empty() && is_identifier_start(name[0]) && std::all_of(name.begin(), name.end(), is_identifier_part);
}

// int(text) of Python, without other scripts' digits: nullopt where it raises; capped.
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

}  // namespace

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
    throw RegexError("re.error", "global flags not at the start of the expression", start);
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
      throw RegexError("re.error", "missing ), unterminated comment", start);
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
  if (!source_.match(U')')) throw RegexError("re.error", "missing ), unterminated subpattern", start);
}

RegexNode RegexParser::reference_node(int group) const {
  RegexNode node;
  node.op = RegexOp::reference;
  node.number = group;
  node.width = *closed_[group];
  return node;
}

}  // namespace peft::config
