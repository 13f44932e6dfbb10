#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "execute/merge_pairs-inl.h"
#include "execute/merge_pairs.h"

namespace peft::execution {

#if PEFT_HAS_PAIRS

namespace {

constexpr std::uint32_t kInfinite = 0x7F7F8000;  // the first magnitude that bf16 rounds to infinity
constexpr std::uint32_t kInfinity = 0x7F80;      // as a bf16
constexpr std::size_t kHalf = 2 * kPairLanes;    // results that are rounded together

// The least magnitude of a result in bf16 that needs no second look: none below the limit is rounded to it. Not zero,
// which vcvtne2ps2bf16 makes of subnormal numbers.
std::uint16_t least_sure(float limit) {
  const std::uint32_t bits = std::min(std::bit_cast<std::uint32_t>(limit), kInfinite);
  return static_cast<std::uint16_t>(std::min(((bits + 0xFFFF) >> 16) + 1, kInfinity));
}

// Of the rows of a panel together: looking at each by itself would take half as long as the arithmetic.
struct Doubt {
  __m512i least, none;
  __m512i most;  // of magnitudes above the least; those below wrap around

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

// What a panel is made of, from a row on.
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

// A row with results that the instructions do not round, or suspects, or what is no number.
PEFT_PAIRS_TARGET std::uint64_t finish_carefully(__m512 scale, const __m512 (&sums)[kPairVectors],
                                                 const std::byte* from, std::byte* to, float limit,
                                                 StripResult& result) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN), infinite = _mm512_set1_epi32(static_cast<int>(kInfinite));
  std::uint64_t suspects = 0;
  for (std::size_t v = 0; v < kPairVectors; ++v) {
    const __m512 value = _mm512_fmadd_ps(scale, sums[v], weights_at(from + v * kHalf));
    const __m512i bits = _mm512_castps_si512(value), magnitude = _mm512_andnot_si512(sign, bits);
    result.finite &= _mm512_cmpge_epu32_mask(magnitude, infinite) == 0;
    const __mmask16 below = _mm512_cmp_ps_mask(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(limit), _CMP_LT_OQ);
    suspects |= static_cast<std::uint64_t>(below) << v * kPairLanes;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + v * kHalf),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  result.marked |= suspects != 0;
  return suspects;
}

// kRows rows from row `row` on, whose sums are known.
template <std::size_t kRows>
PEFT_PAIRS_TARGET void finish_rows_carefully(__m512 scale, const __m512 (&sums)[kRows][kPairVectors],
                                             const Strip& strip, std::size_t panel, std::size_t row,
                                             StripResult& result) {
  const PanelRows at(strip, panel, row);
  for (std::size_t i = 0; i < kRows; ++i) {
    const auto r = static_cast<std::int64_t>(i);
    const float limit = strip.row_limits == nullptr ? 0 : strip.row_limits[row + i] * strip.panel_limits[panel];
    const std::uint64_t suspects =
        finish_carefully(scale, sums[i], at.base + r * strip.base_pitch, at.out + r * strip.out_pitch, limit, result);
    if (strip.suspects != nullptr) strip.suspects[panel * kTileRows + row + i] = suspects;
  }
}

// Few pairs: their columns stay in registers, kWide vectors of them, and the rows come one after the other.
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
    if (strip.suspects != nullptr) std::fill_n(strip.suspects + panel * kTileRows, strip.rows, std::uint64_t{0});
    const float limit = strip.row_limits == nullptr ? 0 : row_limit * strip.panel_limits[panel];
    merge(scale, strip, panel, least_sure(limit), result);
  }
  return result;
}

#else

StripResult merge_strip_of_pairs(float, const Strip&) { return {}; }

#endif

}  // namespace peft::execution
