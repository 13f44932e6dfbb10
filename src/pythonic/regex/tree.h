// A parsed Python regular expression, before it becomes PCRE2's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace peft::pythonic {

// Inline flags of Python's `re` for str patterns.
enum RegexFlag : unsigned {
  kIgnoreCase = 1,
  kMultiLine = 2,
  kDotAll = 4,
  kVerbose = 8,
  kAscii = 16,
  kUnicode = 32,
  kTemplate = 64,
};
constexpr unsigned kTypeFlags = kAscii | kUnicode;

constexpr std::uint64_t kUnlimited = 4294967295;           // Python's MAXREPEAT: "any number of times"
constexpr std::uint64_t kWidest = std::uint64_t{1} << 62;  // stands for "no upper bound" in widths

// How many characters a piece can take.
struct RegexWidth {
  std::uint64_t least = 0, most = 0;
};

// Part of a [set]: a range of characters, or \d \D \s \S \w \W (category != 0; its letter).
struct SetItem {
  char32_t low = 0, high = 0;
  char category = 0;
};

enum class RegexOp : std::uint8_t {
  set,           // items, negated; a literal is a set of one
  any,           // .
  line_begin,    // ^
  line_end,      // $
  text_begin,    // \A
  text_end,      // \Z
  boundary,      // \b
  not_boundary,  // \B
  group,         // (...) captures `number`; (?:...), (?i-s:...) have number 0
  atomic,        // (?>...)
  branch,        // children are alternatives
  repeat,        // children[0] between low and high times
  reference,     // \number
  conditional,   // (?(number)children[0]|children[1])
  look,          // (?= (?! (?<= (?<!
};
enum class RegexGreed : std::uint8_t { greedy, lazy, possessive };

struct RegexNode;
using RegexSequence = std::vector<RegexNode>;

struct RegexNode {
  RegexOp op = RegexOp::any;
  bool negated = false;  // of a set or a look-around
  bool behind = false;   // of a look-around
  RegexGreed greed = RegexGreed::greedy;
  unsigned flags_on = 0, flags_off = 0;  // of a group
  int number = 0;                        // of a group, reference, conditional
  std::uint64_t low = 0, high = 0;       // of a repeat
  std::vector<SetItem> items;
  std::vector<RegexSequence> children;
  RegexWidth width;

  bool is_position() const { return op >= RegexOp::line_begin && op <= RegexOp::not_boundary; }
};

struct RegexWarning {
  std::string category, text;  // "FutureWarning", "Possible nested set at position 1"
};

struct RegexTree {
  RegexSequence root;
  unsigned flags = kUnicode;
  int groups = 0;
  std::vector<std::pair<std::string, int>> names;  // in order of their numbers
};

// Widths are added and multiplied without going above kWidest.
inline std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) { return std::min(a + b, kWidest); }
inline std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b) {
  if (a == 0 || b == 0) return 0;
  return a > kWidest / b ? kWidest : a * b;
}

// The width of a sequence, from the widths of its nodes.
inline RegexWidth width_of(const RegexSequence& sequence) {
  RegexWidth width;
  for (const RegexNode& node : sequence) {
    width = {saturating_add(width.least, node.width.least), saturating_add(width.most, node.width.most)};
  }
  return width;
}

// A set of one character.
inline RegexNode literal_node(char32_t c) {
  RegexNode node;
  node.op = RegexOp::set;
  node.items.push_back({c, c, 0});
  node.width = {1, 1};
  return node;
}
inline RegexNode category_node(char32_t letter) {
  RegexNode node = literal_node(0);
  node.items[0].category = static_cast<char>(letter);
  return node;
}
inline RegexNode position_node(RegexOp op) {
  RegexNode node;
  node.op = op;
  return node;
}

}  // namespace peft::pythonic
