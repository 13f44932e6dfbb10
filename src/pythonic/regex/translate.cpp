#include "pythonic/regex/translate.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace peft::pythonic {
namespace {

constexpr char32_t kLast = 0x10FFFF;
constexpr char32_t kFirstSurrogate = 0xD800, kAfterSurrogates = 0xE000;

// White space as str.isspace has it; PCRE2's \s lacks 1C to 1F and adds 180E.
constexpr SetItem kSpaces[] = {{0x09, 0x0D},     {0x1C, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                               {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                               {0x205F, 0x205F}, {0x3000, 0x3000}};
constexpr SetItem kAsciiSpaces[] = {{0x09, 0x0D}, {0x20, 0x20}};
constexpr SetItem kAsciiDigits[] = {{U'0', U'9'}};
constexpr SetItem kAsciiWords[] = {{U'0', U'9'}, {U'A', U'Z'}, {U'_', U'_'}, {U'a', U'z'}};

// Characters that are the same to Python's IGNORECASE and not to PCRE2's: i and its dotted and dotless forms,
// ligatures, and two scripts. Each from low to high is the same as itself plus `distance`. Found by comparing
// all characters that have case, Python 3.11 and PCRE2 10.42.
struct CaseRange {
  char32_t low, high;
  int distance;
};
constexpr CaseRange kExtraCases[] = {
    {0x49, 0x49, 0x130 - 0x49},
    {0x49, 0x49, 0x131 - 0x49},
    {0x69, 0x69, 0x130 - 0x69},
    {0x69, 0x69, 0x131 - 0x69},
    {0x130, 0x130, 0x49 - 0x130},
    {0x130, 0x130, 0x69 - 0x130},
    {0x130, 0x130, 1},
    {0x131, 0x131, 0x49 - 0x131},
    {0x131, 0x131, 0x69 - 0x131},
    {0x131, 0x131, -1},
    {0x390, 0x390, 0x1FD3 - 0x390},
    {0x1FD3, 0x1FD3, 0x390 - 0x1FD3},
    {0x3B0, 0x3B0, 0x1FE3 - 0x3B0},
    {0x1FE3, 0x1FE3, 0x3B0 - 0x1FE3},
    {0xFB05, 0xFB05, 1},
    {0xFB06, 0xFB06, -1},
    {0x10C80, 0x10CB2, 0x40},
    {0x10CC0, 0x10CF2, -0x40},
    {0x16E40, 0x16E5F, 0x20},
    {0x16E60, 0x16E7F, -0x20},
};
constexpr CaseRange kAsciiCases[] = {{U'A', U'Z', 0x20}, {U'a', U'z', -0x20}};

void character(std::string& body, char32_t c) {
  if ((c >= U'0' && c <= U'9') || (c >= U'A' && c <= U'Z') || (c >= U'a' && c <= U'z') || c == U'_') {
    body += static_cast<char>(c);
  } else {
    fmt::format_to(std::back_inserter(body), "\\x{{{:x}}}", static_cast<unsigned>(c));
  }
}

void range(std::string& body, char32_t low, char32_t high) {
  if (low >= kFirstSurrogate && low < kAfterSurrogates) low = kAfterSurrogates;
  if (high >= kFirstSurrogate && high < kAfterSurrogates) high = kFirstSurrogate - 1;
  if (high < low) return;
  character(body, low);
  if (high == low) return;
  body += '-';
  character(body, high);
}

void other_cases(std::string& body, const SetItem& item, unsigned flags) {
  const auto add_images = [&](const CaseRange& cases) {
    const char32_t low = std::max(item.low, cases.low), high = std::min(item.high, cases.high);
    if (low <= high) range(body, low + cases.distance, high + cases.distance);
  };
  if ((flags & kAscii) != 0) {
    std::for_each(std::begin(kAsciiCases), std::end(kAsciiCases), add_images);
  } else {
    std::for_each(std::begin(kExtraCases), std::end(kExtraCases), add_images);
  }
}

template <std::size_t N>
void ranges(std::string& body, const SetItem (&items)[N], bool complement) {
  char32_t next = 0;
  for (const SetItem& item : items) {
    if (!complement) {
      range(body, item.low, item.high);
    } else if (item.low > next) {
      range(body, next, item.low - 1);
    }
    next = item.high + 1;
  }
  if (complement) range(body, next, kLast);
}

// True: what was added can stand alone.
bool category(std::string& body, char letter, unsigned flags) {
  const bool complement = letter < 'a', ascii = (flags & kAscii) != 0;
  const char kind = static_cast<char>(letter | 0x20);
  if (kind != 's' && !ascii) {
    body += '\\';
    body += letter;
    return true;
  }
  if (kind == 'd') {
    ranges(body, kAsciiDigits, complement);
  } else if (kind == 'w') {
    ranges(body, kAsciiWords, complement);
  } else if (ascii) {
    ranges(body, kAsciiSpaces, complement);
  } else {
    ranges(body, kSpaces, complement);
  }
  return false;
}

// A set of characters in the words of PCRE2; `flags` are those of RegexTree.
std::string set_text(const RegexNode& node, unsigned flags) {
  std::string body;
  bool bare = node.items.size() == 1 && !node.negated;  // x and \d need no brackets, and are faster without
  for (const SetItem& item : node.items) {
    if (item.category != 0) {
      bare = category(body, item.category, flags) && bare;
      continue;
    }
    range(body, item.low, item.high);
    const std::size_t size = body.size();
    if ((flags & kIgnoreCase) != 0) other_cases(body, item, flags);
    bare = bare && item.low == item.high && body.size() == size;
  }
  if (body.empty()) {  // surrogates only, which no text has
    return node.negated ? "[\\x{0}-\\x{10ffff}]" : "[^\\x{0}-\\x{10ffff}]";
  }
  if (bare) return body;
  return (node.negated ? "[^" : "[") + body + "]";
}

constexpr std::uint64_t kMaxCount = 65535;  // of PCRE2's {}

class Translator {
 public:
  explicit Translator(const RegexTree& tree) : tree_(tree) {}

  Pcre2Pattern run() {
    sequence(tree_.root, tree_.flags);
    out_.text.insert(0, options(0, tree_.flags, ")"));
    return std::move(out_);
  }

 private:
  // The flags that PCRE2 has to know. With ASCII rules its (?i) stays off: it would join k with the Kelvin sign.
  static bool is_caseless(unsigned flags) { return (flags & kIgnoreCase) != 0 && (flags & kAscii) == 0; }

  // "(?i-s" and `end` for a change of flags, "" where PCRE2 sees none.
  static std::string options(unsigned before, unsigned after, std::string_view end) {
    std::string on, off;
    if (is_caseless(before) != is_caseless(after)) (is_caseless(after) ? on : off) += 'i';
    if (((before ^ after) & kDotAll) != 0) ((after & kDotAll) != 0 ? on : off) += 's';
    if (on.empty() && off.empty()) return {};
    return "(?" + on + (off.empty() ? "" : "-") + off + std::string(end);
  }

  void add(std::string_view text) { out_.text += text; }

  void sequence(const RegexSequence& nodes, unsigned flags) {
    for (const RegexNode& node : nodes) this->node(node, flags);
  }

  void node(const RegexNode& node, unsigned flags) {
    switch (node.op) {
      case RegexOp::set:
        return add(set_text(node, flags));
      case RegexOp::any:
        return add(".");
      case RegexOp::line_begin:
        return add((flags & kMultiLine) != 0 ? "(?m:^)" : "^");
      case RegexOp::line_end:
        return add((flags & kMultiLine) != 0 ? "(?m:$)" : "$");
      case RegexOp::text_begin:
        return add("\\A");
      case RegexOp::text_end:
        return add("\\z");
      case RegexOp::boundary:
        return boundary(flags);
      case RegexOp::not_boundary:
        return not_boundary(flags);
      case RegexOp::group:
        return group(node, flags);
      case RegexOp::atomic:
        return enclosed("(?>", node, flags);
      case RegexOp::branch:
        return enclosed("(?:", node, flags);
      case RegexOp::repeat:
        return repeat(node, flags);
      case RegexOp::reference:
        return reference(node.number, (flags & kIgnoreCase) != 0);
      case RegexOp::conditional:
        return enclosed(fmt::format("(?({})", node.number), node, flags);
      case RegexOp::look:
        return enclosed(look(node), node, flags);
    }
  }

  static const char* look(const RegexNode& node) {
    if (node.behind) return node.negated ? "(?<!" : "(?<=";
    return node.negated ? "(?!" : "(?=";
  }

  void reference(int number, bool ignore_case) {
    if (ignore_case) add("(?i:");
    add(fmt::format("\\g{{{}}}", number));
    if (ignore_case) add(")");
  }

  // The children between `open` and ")", with | between them. A branch alone in a group needs no group of its own.
  void enclosed(std::string_view open, const RegexNode& node, unsigned flags) {
    const RegexSequence& first = node.children[0];
    const bool is_branch = node.children.size() == 1 && first.size() == 1 && first[0].op == RegexOp::branch;
    if (is_branch) return enclosed(open, first[0], flags);
    add(open);
    for (std::size_t i = 0; i < node.children.size(); ++i) {
      if (i > 0) add("|");
      sequence(node.children[i], flags);
    }
    add(")");
  }

  void group(const RegexNode& node, unsigned flags) {
    unsigned inner = flags;
    if ((node.flags_on & kTypeFlags) != 0) inner &= ~kTypeFlags;
    inner = (inner | node.flags_on) & ~node.flags_off;
    const std::string changed = options(flags, inner, ":");
    if (node.number > 0) ++groups_;
    enclosed(!changed.empty() ? changed : node.number > 0 ? "(" : "(?:", node, inner);
  }

  // In an empty text neither \b nor \B matches; PCRE2's \B does.
  void boundary(unsigned flags) {
    if ((flags & kAscii) == 0) return add("\\b");
    add("(?:(?<=[0-9A-Z_a-z])(?![0-9A-Z_a-z])|(?<![0-9A-Z_a-z])(?=[0-9A-Z_a-z]))");
  }
  void not_boundary(unsigned flags) {
    if ((flags & kAscii) == 0) return add("(?:(?!\\A\\z)\\B)");
    add("(?:(?!\\A\\z)(?:(?<=[0-9A-Z_a-z])(?=[0-9A-Z_a-z])|(?<![0-9A-Z_a-z])(?![0-9A-Z_a-z])))");
  }

  void repeat(const RegexNode& node, unsigned flags) {
    if (node.high == 0) return never(node, flags);
    const RegexWidth item = width_of(node.children[0]);
    if (item.most == 0) return repeat_of_nothing(node, flags);
    std::uint64_t low = node.low, high = node.high;
    if (low > kMaxCount || (high > kMaxCount && high != kUnlimited)) {
      // In a text of at most kShortText characters, a count above it cannot be reached, or is no limit.
      out_.short_texts = true;
      if (low > kMaxCount && item.least > 0) return add("[^\\x{0}-\\x{10ffff}]");
      if (low > kMaxCount) low = 0;
      high = kUnlimited;
    }
    const bool fixed = low == high;
    const bool atomic = fixed && node.greed == RegexGreed::possessive;  // PCRE2 ignores + after a plain count
    if (atomic) add("(?>");
    atom(node.children[0], flags);
    if (fixed) {
      add(fmt::format("{{{}}}", low));  // the only form PCRE2 takes in look-behinds
    } else if (high == kUnlimited) {
      add(low == 0 ? "*" : low == 1 ? "+" : fmt::format("{{{},}}", low));
    } else {
      add(fmt::format("{{{},{}}}", low, high));
    }
    if (atomic) add(")");
    if (!fixed && node.greed != RegexGreed::greedy) add(node.greed == RegexGreed::lazy ? "?" : "+");
  }

  // One item that a quantifier can follow. PCRE2 is much faster at x* than at (?:x)*.
  void atom(const RegexSequence& item, unsigned flags) {
    const bool single = item.size() == 1 && item[0].op != RegexOp::repeat && !item[0].is_position();
    if (!single) add("(?:");
    sequence(item, flags);
    if (!single) add(")");
  }

  // Of an item without width, once is as good as often. In this form PCRE2 takes it in look-behinds.
  void repeat_of_nothing(const RegexNode& node, unsigned flags) {
    const bool lazy = node.greed == RegexGreed::lazy;
    add(node.greed == RegexGreed::possessive ? "(?>" : "(?:");
    if (node.low == 0 && lazy) add("|");
    sequence(node.children[0], flags);
    if (node.low == 0 && !lazy) add("|");
    add(")");
  }

  // x{0}: kept only for the numbers of the groups in it.
  void never(const RegexNode& node, unsigned flags) {
    const std::size_t size = out_.text.size();
    const int groups = groups_;
    atom(node.children[0], flags);
    if (groups_ > groups) return add("{0}");
    out_.text.resize(size);
    add("(?:)");
  }

  const RegexTree& tree_;
  Pcre2Pattern out_;
  int groups_ = 0;
};

}  // namespace

Pcre2Pattern translate(const RegexTree& tree) { return Translator(tree).run(); }

}  // namespace peft::pythonic
