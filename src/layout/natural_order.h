// Order of names as people and PEFT count: layers.9 before layers.10.
#pragma once

#include <string_view>

#include "peft/adapter.h"

namespace peft::layout {

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Compares digit runs by value, everything else by byte.
inline bool natural_less(std::string_view a, std::string_view b) {
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_digit(a[i]) && is_digit(b[j])) {
      const std::size_t i0 = i, j0 = j;
      while (i < a.size() && is_digit(a[i])) ++i;
      while (j < b.size() && is_digit(b[j])) ++j;
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

// Of factors: by module in natural order, then by expert and projection.
inline bool site_less(const Site& x, const Site& y) {
  if (x.module != y.module) return natural_less(x.module, y.module);
  if (x.parameter != y.parameter) return x.parameter < y.parameter;
  if (x.expert != y.expert) return x.expert < y.expert;
  return x.projection < y.projection;
}

}  // namespace peft::layout
