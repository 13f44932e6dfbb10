// Order of names as people and PEFT count: layers.9 before layers.10.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace peft {

inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// Where two names begin to differ; names of one model begin with the same long words.
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

// Compares digit runs by value, everything else by byte.
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
