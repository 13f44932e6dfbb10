// Factors in words of two elements, compiled for the processors that have products of such words.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/merge_pack.h"
#include "execute/merge_pairs-inl.h"
#include "execute/merge_pairs.h"

namespace peft::execution {

#if PEFT_HAS_PAIRS

namespace {

constexpr std::size_t kLanes = kPairLanes;  // sums side by side, as in merge_pack.cpp

PEFT_PAIRS_TARGET inline std::uint32_t bits_at(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Whether a word has an element that is neither zero nor large enough. An element minus one, as unsigned: zero becomes
// large.
PEFT_PAIRS_TARGET inline std::uint32_t too_small(std::uint32_t word) {
  const std::uint32_t high = word >> 16 & 0x7FFFu, low = word & 0x7FFFu;
  return static_cast<std::uint32_t>(high - 1 < kSmallestSafe - 1) |
         static_cast<std::uint32_t>(low - 1 < kSmallestSafe - 1);
}

// words[j] of elements 2p and 2p + 1 of columns j, which lie `step` bytes apart.
PEFT_PAIRS_TARGET void pair_columns(const std::byte* first, const std::byte* second, std::int64_t step,
                                    std::size_t count, std::uint32_t* words) {
  // These loops become vectors.
  if (step == 2) {
    for (std::size_t j = 0; j < count; ++j) words[j] = bits_at(first + 2 * j) << 16 | bits_at(second + 2 * j);
    return;
  }
  if (step == 4 && second == first + 2) {
    for (std::size_t j = 0; j < count; ++j) words[j] = bits_at(first + 4 * j) << 16 | bits_at(first + 4 * j + 2);
    return;
  }
  for (std::size_t j = 0; j < count; ++j, first += step, second += step)
    words[j] = bits_at(first) << 16 | bits_at(second);
}

// Each row has too little of a panel for the processor to see where the next one is.
PEFT_PAIRS_TARGET void fetch_next_panel(const std::byte* first, const std::byte* second) {
  for (std::size_t line = 0; line < 2 * kPanel; line += 64) {
    const auto ahead = 2 * kPanel + line;
    // NOLINTBEGIN(performance-no-int-to-ptr): may lie outside of the factor, and is never read
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(first) + ahead));
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(second) + ahead));
    // NOLINTEND(performance-no-int-to-ptr)
  }
}

// What kLanes words at a time have: sums of squares, and whether one is too small.
struct PairSums {
  float squares[kLanes] = {};
  std::uint32_t small = 0;

  PEFT_PAIRS_TARGET void add(const std::uint32_t* words) {
    std::uint32_t any = 0;
    for (std::size_t j = 0; j < kLanes; ++j) {
      any |= too_small(words[j]);
      squares[j] += first_of(words[j]) * first_of(words[j]) + second_of(words[j]) * second_of(words[j]);
    }
    small |= any;
  }
};

PEFT_PAIRS_TARGET float root_of_sum(const float (&squares)[kLanes]) {
  float sum = 0;
  for (const float square : squares) sum += square;
  return std::sqrt(sum);
}

// As PairSums, and root_of_sum(), of a row that has a lane for each word.
PEFT_PAIRS_TARGET float norm_of_short_row(const std::uint32_t* words, std::size_t count) {
  float sum = 0;
  for (std::size_t p = 0; p < count; ++p)
    sum += first_of(words[p]) * first_of(words[p]) + second_of(words[p]) * second_of(words[p]);
  return std::sqrt(sum);
}

PEFT_PAIRS_TARGET float norm_of_long_row(const std::uint32_t* words, std::size_t count) {
  PairSums sums;
  std::size_t p = 0;
  for (; p + kLanes <= count; p += kLanes) sums.add(words + p);
  std::uint32_t last[kLanes] = {};
  std::copy(words + p, words + count, last);
  if (p < count) sums.add(last);
  return root_of_sum(sums.squares);
}

}  // namespace

PEFT_PAIRS_TARGET void pair_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows,
                                 std::uint32_t* out, float* norms, bool& safe) {
  const std::size_t pairs = pairs_of(static_cast<std::size_t>(rank)), whole = static_cast<std::size_t>(rank) / 2;
  const std::byte* from = source.data + first * source.row_stride;
  if (whole == pairs && source.row_stride == rank * source.col_stride) {  // the rows follow each other: one long one
    pair_columns(from, from + source.col_stride, 2 * source.col_stride, rows * pairs, out);
  } else {
    for (std::size_t i = 0; i < rows; ++i, from += source.row_stride) {
      std::uint32_t* words = out + i * pairs;
      pair_columns(from, from + source.col_stride, 2 * source.col_stride, whole, words);
      if (whole < pairs) words[whole] = bits_at(from + 2 * static_cast<std::int64_t>(whole) * source.col_stride) << 16;
    }
  }
  std::uint32_t small = 0;
  for (std::size_t w = 0; w < rows * pairs; ++w) small |= too_small(out[w]);
  safe = small == 0;
  for (std::size_t i = 0; i < rows; ++i)
    norms[i] = pairs <= kLanes ? norm_of_short_row(out + i * pairs, pairs) : norm_of_long_row(out + i * pairs, pairs);
}

PEFT_PAIRS_TARGET float pair_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel,
                                   std::uint32_t* out, bool& safe) {
  constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
  const std::int64_t first = panel * kWidth;
  const auto count = static_cast<std::size_t>(std::min(cols - first, kWidth));
  const std::size_t pairs = pairs_of(static_cast<std::size_t>(rank));
  PairSums sums[kPanel / kLanes];
  for (std::size_t p = 0; p < pairs; ++p) {
    const std::byte* from =
        source.data + first * source.col_stride + 2 * static_cast<std::int64_t>(p) * source.row_stride;
    std::uint32_t* words = out + p * kPanel;
    if (source.col_stride == 2) fetch_next_panel(from, from + source.row_stride);
    if (2 * p + 1 < static_cast<std::size_t>(rank)) {
      pair_columns(from, from + source.row_stride, source.col_stride, count, words);
    } else {
      for (std::size_t j = 0; j < count; ++j)
        words[j] = bits_at(from + static_cast<std::int64_t>(j) * source.col_stride) << 16;
    }
    std::fill(words + count, words + kPanel, 0u);
    for (std::size_t v = 0; v < std::size(sums); ++v) sums[v].add(words + v * kLanes);
  }
  float most = 0;
  safe = true;
  for (const PairSums& some : sums) {
    most = std::max(most, *std::max_element(some.squares, some.squares + kLanes));
    safe &= some.small == 0;
  }
  return std::sqrt(most);
}

#else

void pair_left(const FactorSource&, std::int64_t, std::int64_t, std::size_t, std::uint32_t*, float*, bool&) {}
float pair_right(const FactorSource&, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*, bool&) { return 0; }

#endif

}  // namespace peft::execution
