// Text: UTF-8, the order of names, shapes, and names that are nearly the one that was asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft {

// "[24, 3]"
std::string shape_text(std::span<const std::int64_t> shape);

// The names in one line: "a, b, c". More than `limit` of them are cut: "a, b and 5 more".
std::string list_text(std::span<const std::string> names, std::size_t limit = SIZE_MAX,
                      std::string_view more = " and {} more");

// The number of edits (insert, remove, replace) that turn one word into the other.
std::size_t edit_distance(std::string_view a, std::string_view b);

// Up to `count` of `names`, the nearest first (by edit distance, then alphabetically). Names that share less than half
// of their characters with `wanted` are left out.
std::vector<std::string> near_names(std::string_view wanted, std::span<const std::string> names, std::size_t count = 3);

// A hint about a path that does not exist: similar names in its folder, or what is wrong with the folder.
std::string missing_file_hint(const std::string& path);

// UTF-8 is strict here: no overlong forms, no surrogates, nothing above U+10FFFF.
struct Utf8Step {
  char32_t code_point = 0;
  std::size_t length = 0;  // bytes of the sequence; 0 when `text` does not begin with a valid one
};

// The code point at the start of `text`, which must not be empty.
constexpr Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1};
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return {};
  char32_t point = first & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    point = (point << 6) | (byte(i) & 0x3Fu);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
  if (point < kSmallest[length] || point > 0x10FFFF || surrogate) return {};
  return {point, length};
}

// The offset of the first byte that is not part of valid UTF-8; npos when all bytes are.
inline std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    std::uint64_t eight = 0;  // most text is ASCII: it is skipped eight bytes at a time
    for (; i + sizeof eight <= text.size(); i += sizeof eight) {
      std::memcpy(&eight, text.data() + i, sizeof eight);
      if ((eight & 0x8080808080808080ull) != 0) break;
    }
    if (i == text.size()) break;
    const Utf8Step step = utf8_step(text.substr(i, 4));
    if (step.length == 0) return i;
    i += step.length;
  }
  return std::string_view::npos;
}

inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// The length of the common beginning. Names of one model share long beginnings.
inline std::size_t common_prefix(std::string_view a, std::string_view b) {
  const std::size_t size = std::min(a.size(), b.size());
  std::size_t i = 0;
  for (; i + sizeof(std::uint64_t) <= size; i += sizeof(std::uint64_t)) {
    std::uint64_t x, y;
    std::memcpy(&x, a.data() + i, sizeof x);
    std::memcpy(&y, b.data() + i, sizeof y);
    if (x != y) break;
  }
  while (i < size && a[i] == b[i]) ++i;
  return i;
}

// The order in which people and PEFT count: layers.9 comes before layers.10. Runs of digits are compared by value, all
// other characters by byte.
inline bool natural_less(std::string_view a, std::string_view b) {
  std::size_t i = common_prefix(a, b);
  while (i > 0 && is_ascii_digit(a[i - 1])) --i;  // the number that the difference may be part of
  std::size_t j = i;
  while (i < a.size() && j < b.size()) {
    if (is_ascii_digit(a[i]) && is_ascii_digit(b[j])) {
      const std::size_t i0 = i, j0 = j;
      while (i < a.size() && is_ascii_digit(a[i])) ++i;
      while (j < b.size() && is_ascii_digit(b[j])) ++j;
      std::string_view x = a.substr(i0, i - i0), y = b.substr(j0, j - j0);
      while (x.size() > 1 && x.front() == '0') x.remove_prefix(1);
      while (y.size() > 1 && y.front() == '0') y.remove_prefix(1);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
    }
  }
  if ((i < a.size()) != (j < b.size())) return j < b.size();
  return a < b;
}

}  // namespace peft
