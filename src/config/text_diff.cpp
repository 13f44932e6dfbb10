// A line diff by the longest common subsequence.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"

namespace peft {
namespace {

constexpr std::size_t kMaxCells = std::size_t{1} << 24;  // beyond it, the middle is shown as all removed, all added

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  return lines;
}

void add(std::string& out, char mark, std::string_view line) {
  out += mark;
  out += line;
  out += '\n';
}

using Lines = std::vector<std::string_view>;

void diff_middle(const Lines& a, const Lines& b, std::string& out) {
  std::size_t i = 0, j = 0;
  if (a.size() * b.size() <= kMaxCells) {
    // common[i][j]: length of the longest common subsequence of a[i..] and b[j..]
    const std::size_t width = b.size() + 1;
    std::vector<std::uint32_t> common((a.size() + 1) * width, 0);
    for (std::size_t x = a.size(); x-- > 0;) {
      for (std::size_t y = b.size(); y-- > 0;) {
        common[x * width + y] = a[x] == b[y] ? common[(x + 1) * width + y + 1] + 1
                                             : std::max(common[(x + 1) * width + y], common[x * width + y + 1]);
      }
    }
    while (i < a.size() && j < b.size()) {
      if (a[i] == b[j]) {
        add(out, ' ', a[i++]);
        ++j;
      } else if (common[(i + 1) * width + j] >= common[i * width + j + 1]) {
        add(out, '-', a[i++]);
      } else {
        add(out, '+', b[j++]);
      }
    }
  }
  for (; i < a.size(); ++i) add(out, '-', a[i]);
  for (; j < b.size(); ++j) add(out, '+', b[j]);
}

}  // namespace

std::string diff(std::string_view before, std::string_view after) {
  const Lines a = lines_of(before), b = lines_of(after);
  const std::size_t shorter = std::min(a.size(), b.size());
  std::size_t head = 0, tail = 0;
  while (head < shorter && a[head] == b[head]) ++head;
  while (tail < shorter - head && a[a.size() - 1 - tail] == b[b.size() - 1 - tail]) ++tail;

  std::string out;
  for (std::size_t i = 0; i < head; ++i) add(out, ' ', a[i]);
  const auto middle = [&](const Lines& lines) {
    return Lines(lines.begin() + static_cast<std::ptrdiff_t>(head), lines.end() - static_cast<std::ptrdiff_t>(tail));
  };
  diff_middle(middle(a), middle(b), out);
  for (std::size_t i = a.size() - tail; i < a.size(); ++i) add(out, ' ', a[i]);
  return out;
}

}  // namespace peft
