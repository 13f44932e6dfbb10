#include "config/regex_parser.h"

#include <algorithm>

namespace peft::config {
namespace {

constexpr std::u32string_view kDigits = U"0123456789";

bool is_special(char32_t c) { return std::u32string_view(U".\\[{()*+?^$|").find(c) != std::u32string_view::npos; }

RegexNode position_node(RegexOp op) {
  RegexNode node;
  node.op = op;
  return node;
}

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

}  // namespace

std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) { return std::min(a + b, kWidest); }

std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b) {
  if (a == 0 || b == 0) return 0;
  return a > kWidest / b ? kWidest : a * b;
}

RegexWidth width_of(const RegexSequence& sequence) {
  RegexWidth width;
  for (const RegexNode& node : sequence) {
    width = {saturating_add(width.least, node.width.least), saturating_add(width.most, node.width.most)};
  }
  return width;
}

RegexNode literal_node(char32_t c) {
  RegexNode node;
  node.op = RegexOp::set;
  node.items.push_back({c, c, 0});
  node.width = {1, 1};
  return node;
}

RegexTree RegexParser::parse() {
  tree_.root = parse_alternatives(false, 0);
  if (!source_.next().empty()) throw source_.error("unbalanced parenthesis");
  for (const auto& [group, position] : conditions_) {
    if (group >= static_cast<int>(closed_.size())) {
      throw RegexError("re.error", "invalid group reference " + std::to_string(group), position);
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
    throw RegexError("re.error", "nothing to repeat", here - 1);
  }
  if (sequence.back().op == RegexOp::repeat) throw RegexError("re.error", "multiple repeat", here - 1);

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
    if (high < low) throw RegexError("re.error", "min repeat greater than max repeat", here);
  }
  return true;
}

// What Python finds only when it compiles the parsed pattern; no position is known then.
void RegexParser::check_compiled(const RegexSequence& sequence) const {
  constexpr std::uint64_t kMaxLookBehind = 4294967295;
  for (const RegexNode& node : sequence) {
    if (node.op == RegexOp::repeat && (tree_.flags & kTemplate) != 0) {
      constexpr const char* kNames[] = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"};
      throw RegexError("re.error",
                       std::string("internal: unsupported template operator ") + kNames[static_cast<int>(node.greed)],
                       std::nullopt);
    }
    if (node.op == RegexOp::look && node.behind) {
      const RegexWidth width = width_of(node.children[0]);
      if (width.least > kMaxLookBehind) throw RegexError("re.error", "looks too much behind", std::nullopt);
      if (width.least != width.most) {
        throw RegexError("re.error", "look-behind requires fixed-width pattern", std::nullopt);
      }
    }
    for (const RegexSequence& child : node.children) check_compiled(child);
  }
}

}  // namespace peft::config
