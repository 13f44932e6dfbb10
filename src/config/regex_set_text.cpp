#include "config/regex_set_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace peft::config {
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

}  // namespace

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

}  // namespace peft::config
