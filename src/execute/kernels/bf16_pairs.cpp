#include "execute/kernels/bf16_pairs.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC diagnostic ignored \
    "-Wuninitialized"  // g++ 12 warns of values that its own header leaves undefined on purpose
#include <immintrin.h>
#define PEFT_HAS_PAIRS 1
#define PEFT_PAIRS_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>

namespace peft::execution {

bool can_pair(const Plan& plan, const Sides& sides) {
  const auto is_bf16 = [&](const View& view) {
    return view.rows > 0 && view.cols > 0 && plan.sources[view.source]->tensors()[view.tensor].dtype == Dtype::bf16;
  };
  return is_bf16(sides.left) && is_bf16(sides.right) && has_pair_products();
}

#if PEFT_HAS_PAIRS

namespace {

constexpr std::size_t kPairLanes = 16, kPairVectors = kPanel / kPairLanes;

PEFT_PAIRS_TARGET inline __m512 add_pair(__m512 sum, __m512i left, __m512i right) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
}

// Multiplies kRows rows with a panel. The sums stay in registers.
template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void multiply_rows(const std::uint32_t* left, std::size_t pairs, const std::uint32_t* right,
                                            __m512 (&sums)[kRows][kPairVectors]) {
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kPairVectors; ++v) sums[i][v] = _mm512_setzero_ps();
  }
  for (std::size_t p = 0; p < pairs; ++p) {
    __m512i column[kPairVectors];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kPairVectors; ++v) column[v] = _mm512_loadu_si512(right + p * kPanel + v * kPairLanes);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRows; ++i) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int>(left[i * pairs + p]));
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kPairVectors; ++v) sums[i][v] = add_pair(sums[i][v], factor, column[v]);
    }
  }
}

// ---- products

template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void multiply_to(const std::uint32_t* left, std::size_t pairs, const std::uint32_t* right,
                                          float* tile) {
  __m512 sums[kRows][kPairVectors];
  multiply_rows<kRows>(left, pairs, right, sums);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kPairVectors; ++v) _mm512_storeu_ps(tile + i * kPanel + v * kPairLanes, sums[i][v]);
  }
}

PEFT_PAIRS_TARGET void multiply_all(const std::uint32_t* left, std::size_t rows, std::size_t pairs,
                                    const std::uint32_t* right, float* tile) {
  std::size_t i = 0;
  for (; i + 4 <= rows; i += 4) multiply_to<4>(left + i * pairs, pairs, right, tile + i * kPanel);
  for (; i < rows; ++i) multiply_to<1>(left + i * pairs, pairs, right, tile + i * kPanel);
}

// Whether the processor's products equal the chain of fused multiply-adds that merges are defined by.
bool try_out() {
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vl")) return false;
  constexpr std::size_t kPairs = 16;
  std::mt19937 random(1);
  std::uint32_t left[kPairs], right[kPairs * kPanel];
  const auto number = [&] {
    return (static_cast<std::uint32_t>(random()) & 0x8FFFu) | 0x3000u;
  };  // exponents around 1, either sign
  for (std::uint32_t& word : left) word = number() << 16 | number();
  for (std::uint32_t& word : right) word = number() << 16 | number();
  float tile[kPanel];
  multiply_all(left, 1, kPairs, right, tile);
  for (std::size_t j = 0; j < kPanel; ++j) {
    float sum = 0;
    for (std::size_t p = 0; p < kPairs; ++p) {
      sum = std::fma(first_of(left[p]), first_of(right[p * kPanel + j]), sum);
      sum = std::fma(second_of(left[p]), second_of(right[p * kPanel + j]), sum);
    }
    if (sum != tile[j]) return false;
  }
  return true;
}

}  // namespace

bool has_pair_products() {
  static const bool works = try_out();
  return works && has_wide_vectors();
}

void multiply_pairs(const std::uint32_t* left, std::size_t rows, std::size_t pairs, const std::uint32_t* right,
                    float* tile) {
  multiply_all(left, rows, pairs, right, tile);
}

// ---- packing

namespace {

constexpr std::size_t kLanes = kPairLanes;  // independent sums, as in pack_factors.cpp

PEFT_PAIRS_TARGET inline std::uint32_t bits_at(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Whether a word has an element that is nonzero and too small. Unsigned subtraction of 1 turns zero into a large
// number.
PEFT_PAIRS_TARGET inline std::uint32_t too_small(std::uint32_t word) {
  const std::uint32_t high = word >> 16 & 0x7FFFu, low = word & 0x7FFFu;
  return static_cast<std::uint32_t>(high - 1 < kSmallestSafe - 1) |
         static_cast<std::uint32_t>(low - 1 < kSmallestSafe - 1);
}

// words[j] of elements 2p and 2p + 1 of columns j, which lie `step` bytes apart.
PEFT_PAIRS_TARGET void pair_columns(const std::byte* first, const std::byte* second, std::int64_t step,
                                    std::size_t count, std::uint32_t* words) {
  // The compiler vectorises these loops.
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

// A row has too few bytes of a panel for the hardware prefetcher to find the next panel.
PEFT_PAIRS_TARGET void fetch_next_panel(const std::byte* first, const std::byte* second) {
  for (std::size_t line = 0; line < 2 * kPanel; line += 64) {
    const auto ahead = 2 * kPanel + line;
    // NOLINTBEGIN(performance-no-int-to-ptr): may lie outside of the factor, and is never read
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(first) + ahead));
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(second) + ahead));
    // NOLINTEND(performance-no-int-to-ptr)
  }
}

// Sums of squares of kLanes words at a time, and whether an element was too small.
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

// The norm of a row with at most kLanes words. Same order of additions as PairSums and root_of_sum().
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
  if (whole == pairs &&
      source.row_stride == rank * source.col_stride) {  // the rows follow each other like one long row
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

// ---- strips

namespace {

constexpr std::uint32_t kInfinite = 0x7F7F8000;  // the first magnitude that bf16 rounds to infinity
constexpr std::uint32_t kInfinity = 0x7F80;      // as a bf16
constexpr std::size_t kHalf = 2 * kPairLanes;    // results that are rounded together

// The smallest bf16 magnitude of a result that needs no careful pass: no value below the limit rounds to it. It is not
// zero, because vcvtne2ps2bf16 turns subnormal numbers into zero.
std::uint16_t least_sure(float limit) {
  const std::uint32_t bits = std::min(std::bit_cast<std::uint32_t>(limit), kInfinite);
  return static_cast<std::uint16_t>(std::min(((bits + 0xFFFF) >> 16) + 1, kInfinity));
}

// Whether any row of a panel needs the careful pass. Checking each row alone would cost half of the arithmetic.
struct Doubt {
  __m512i least, none;
  __m512i most;  // of magnitude - least; magnitudes below `least` wrap around

  PEFT_PAIRS_TARGET explicit Doubt(std::uint16_t sure)
      : least(_mm512_set1_epi16(static_cast<short>(sure))),
        none(_mm512_set1_epi16(static_cast<short>(kInfinity - sure))),
        most(_mm512_setzero_si512()) {}
  PEFT_PAIRS_TARGET void add(__m512i results) {
    const __m512i magnitude = _mm512_and_si512(results, _mm512_set1_epi16(0x7FFF));
    most = _mm512_max_epu16(most, _mm512_sub_epi16(magnitude, least));
  }
  PEFT_PAIRS_TARGET bool any() const { return _mm512_cmpge_epu16_mask(most, none) != 0; }
};

PEFT_PAIRS_TARGET inline __m512 weights_at(const std::byte* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

PEFT_PAIRS_TARGET inline void finish_half(__m512 scale, __m512 first, __m512 second, const std::byte* from,
                                          std::byte* to, Doubt& doubt) {
  const __m512 low = _mm512_fmadd_ps(scale, first, weights_at(from));
  const __m512 high = _mm512_fmadd_ps(scale, second, weights_at(from + kHalf));
  const auto results = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  _mm512_storeu_si512(to, results);
  doubt.add(results);
}

// Pointers to the operands of a panel, from row `row` on.
struct PanelRows {
  const std::uint32_t* left;
  const std::uint32_t* right;
  const std::byte* base;
  std::byte* out;

  PanelRows(const Strip& strip, std::size_t panel, std::size_t row)
      : left(static_cast<const std::uint32_t*>(strip.left) + row * strip.width),
        right(static_cast<const std::uint32_t*>(strip.right) + panel * strip.width * kPanel),
        base(strip.base + static_cast<std::int64_t>(row) * strip.base_pitch + panel * kPanel * 2),
        out(strip.out + static_cast<std::int64_t>(row) * strip.out_pitch + panel * kPanel * 2) {}
};

// Finishes a row that has results which the instruction does not round, which cancelled, or which are not finite.
PEFT_PAIRS_TARGET std::uint64_t finish_carefully(__m512 scale, const __m512 (&sums)[kPairVectors],
                                                 const std::byte* from, std::byte* to, float limit,
                                                 StripResult& result) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN), infinite = _mm512_set1_epi32(static_cast<int>(kInfinite));
  std::uint64_t cancelled = 0;
  for (std::size_t v = 0; v < kPairVectors; ++v) {
    const __m512 value = _mm512_fmadd_ps(scale, sums[v], weights_at(from + v * kHalf));
    const __m512i bits = _mm512_castps_si512(value), magnitude = _mm512_andnot_si512(sign, bits);
    result.finite &= _mm512_cmpge_epu32_mask(magnitude, infinite) == 0;
    const __mmask16 below = _mm512_cmp_ps_mask(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(limit), _CMP_LT_OQ);
    cancelled |= static_cast<std::uint64_t>(below) << v * kPairLanes;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + v * kHalf),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  result.marked |= cancelled != 0;
  return cancelled;
}

// The same for kRows rows from row `row` on, whose sums are known.
template <std::size_t kRows>
PEFT_PAIRS_TARGET void finish_rows_carefully(__m512 scale, const __m512 (&sums)[kRows][kPairVectors],
                                             const Strip& strip, std::size_t panel, std::size_t row,
                                             StripResult& result) {
  const PanelRows at(strip, panel, row);
  for (std::size_t i = 0; i < kRows; ++i) {
    const auto r = static_cast<std::int64_t>(i);
    const float limit = strip.row_limits == nullptr ? 0 : strip.row_limits[row + i] * strip.panel_limits[panel];
    const std::uint64_t cancelled =
        finish_carefully(scale, sums[i], at.base + r * strip.base_pitch, at.out + r * strip.out_pitch, limit, result);
    if (strip.cancelled != nullptr) strip.cancelled[panel * kTileRows + row + i] = cancelled;
  }
}

// For small ranks: kWide vectors of columns stay in registers, and the rows follow one after the other.
template <std::size_t kPairs, std::size_t kWide = kPairs <= 4 ? 4 : 2>
PEFT_PAIRS_TARGET void merge_few(float scale, const Strip& strip, std::size_t panel, std::uint16_t sure,
                                 StripResult& result) {
  const __m512 factor = _mm512_set1_ps(scale);
  Doubt doubt(sure);
  for (std::size_t begin = 0; begin < kPairVectors; begin += kWide) {
    PanelRows at(strip, panel, 0);
    __m512i column[kPairs][kWide];
#pragma GCC unroll 8
    for (std::size_t p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kWide; ++v)
        column[p][v] = _mm512_loadu_si512(at.right + p * kPanel + (begin + v) * kPairLanes);
    }
    at.base += begin * kHalf, at.out += begin * kHalf;
    for (std::size_t i = 0; i < strip.rows; ++i) {
      fetch_ahead(at.base, strip.base_pitch, kWide * kHalf);
      __m512 sums[kWide];
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kWide; ++v) sums[v] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (std::size_t p = 0; p < kPairs; ++p) {
        const __m512i word = _mm512_set1_epi32(static_cast<int>(at.left[p]));
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kWide; ++v) sums[v] = add_pair(sums[v], word, column[p][v]);
      }
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kWide; v += 2)
        finish_half(factor, sums[v], sums[v + 1], at.base + v * kHalf, at.out + v * kHalf, doubt);
      at.left += kPairs, at.base += strip.base_pitch, at.out += strip.out_pitch;
    }
  }
  if (!doubt.any()) return;
  for (std::size_t i = 0; i < strip.rows; ++i) {
    const PanelRows at(strip, panel, i);
    __m512 sums[1][kPairVectors];
    multiply_rows<1>(at.left, kPairs, at.right, sums);
    finish_rows_carefully<1>(factor, sums, strip, panel, i, result);
  }
}

template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void merge_rows(__m512 scale, const Strip& strip, std::size_t panel, std::size_t row,
                                         std::uint16_t sure, StripResult& result) {
  PanelRows at(strip, panel, row);
  __m512 sums[kRows][kPairVectors];
  multiply_rows<kRows>(at.left, strip.width, at.right, sums);
  Doubt doubt(sure);
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
    fetch_ahead(at.base, strip.base_pitch, kPanel * 2);
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kPairVectors; v += 2)
      finish_half(scale, sums[i][v], sums[i][v + 1], at.base + v * kHalf, at.out + v * kHalf, doubt);
    at.base += strip.base_pitch, at.out += strip.out_pitch;
  }
  if (!doubt.any()) return;
  __m512 kept[kRows][kPairVectors];  // the sums themselves stay in registers
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kPairVectors; ++v) kept[i][v] = sums[i][v];
  }
  finish_rows_carefully<kRows>(scale, kept, strip, panel, row, result);
}

PEFT_PAIRS_TARGET void merge_many(float scale, const Strip& strip, std::size_t panel, std::uint16_t sure,
                                  StripResult& result) {
  const __m512 factor = _mm512_set1_ps(scale);
  std::size_t i = 0;
  for (; i + 4 <= strip.rows; i += 4) merge_rows<4>(factor, strip, panel, i, sure, result);
  for (; i < strip.rows; ++i) merge_rows<1>(factor, strip, panel, i, sure, result);
}

using MergePanel = void (*)(float scale, const Strip& strip, std::size_t panel, std::uint16_t sure,
                            StripResult& result);

constexpr std::size_t kFew = 8;
template <std::size_t... kPairs>
constexpr std::array<MergePanel, kFew> few_of(std::index_sequence<kPairs...>) {
  return {merge_few<(kPairs + 1)>...};
}
constexpr std::array<MergePanel, kFew> kMergeFew = few_of(std::make_index_sequence<kFew>());

}  // namespace

StripResult merge_strip_of_pairs(float scale, const Strip& strip) {
  StripResult result;
  const MergePanel merge = strip.width == 0 || strip.width > kFew ? merge_many : kMergeFew[strip.width - 1];
  const float row_limit =
      strip.row_limits == nullptr ? 0 : *std::max_element(strip.row_limits, strip.row_limits + strip.rows);
  for (std::size_t panel = 0; panel < strip.panels(); ++panel) {
    if (strip.cancelled != nullptr) std::fill_n(strip.cancelled + panel * kTileRows, strip.rows, std::uint64_t{0});
    const float limit = strip.row_limits == nullptr ? 0 : row_limit * strip.panel_limits[panel];
    merge(scale, strip, panel, least_sure(limit), result);
  }
  return result;
}

#else

bool has_pair_products() { return false; }
void multiply_pairs(const std::uint32_t*, std::size_t, std::size_t, const std::uint32_t*, float*) {}
void pair_left(const FactorSource&, std::int64_t, std::int64_t, std::size_t, std::uint32_t*, float*, bool&) {}
float pair_right(const FactorSource&, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*, bool&) { return 0; }
StripResult merge_strip_of_pairs(float, const Strip&) { return {}; }

#endif

}  // namespace peft::execution
