#include "execute/merge_pairs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "base/half.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12, of undefined values that its own header means to be so
#include <immintrin.h>
#define PEFT_HAS_PAIRS 1
#endif

namespace peft::execution {

#if PEFT_HAS_PAIRS

namespace {

#define PEFT_PAIRS_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

PEFT_PAIRS_TARGET inline __m512 add_pair(__m512 sum, __m512i left, __m512i right) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
}

constexpr std::size_t kVectors = 4, kLanes = 16;

// kRows rows of a panel stay in registers while the chain runs.
template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void multiply_rows(const std::uint32_t* left, std::size_t pairs, const std::uint32_t* right,
                                            __m512 (&sums)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) sums[i][v] = _mm512_setzero_ps();
  }
  for (std::size_t p = 0; p < pairs; ++p) {
    __m512i column[kVectors];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_si512(right + p * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRows; ++i) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int>(left[i * pairs + p]));
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) sums[i][v] = add_pair(sums[i][v], factor, column[v]);
    }
  }
}

template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void multiply_to(const std::uint32_t* left, std::size_t pairs, const std::uint32_t* right,
                                          float* tile) {
  __m512 sums[kRows][kVectors];
  multiply_rows<kRows>(left, pairs, right, sums);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(tile + i * kPanel + v * kLanes, sums[i][v]);
  }
}

PEFT_PAIRS_TARGET void multiply_all(const std::uint32_t* left, std::size_t rows, std::size_t pairs,
                                    const std::uint32_t* right, float* tile) {
  std::size_t i = 0;
  for (; i + 4 <= rows; i += 4) multiply_to<4>(left + i * pairs, pairs, right, tile + i * kPanel);
  for (; i < rows; ++i) multiply_to<1>(left + i * pairs, pairs, right, tile + i * kPanel);
}

constexpr std::uint32_t kInfinite = 0x7F7F8000;  // the first magnitude that bf16 rounds to infinity
constexpr std::uint32_t kNormal = 0x00800000;    // smaller ones are zero to vcvtne2ps2bf16

// A row of a tile with a result that the instructions do not round, or that may be a suspect, or no number.
PEFT_PAIRS_TARGET std::uint64_t finish_slowly(float scale, const __m512 (&d)[kVectors], const std::byte* from,
                                              std::byte* to, float limit, StripResult& result) {
  float products[kPanel];
  for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(products + v * kLanes, d[v]);
  std::uint64_t suspects = 0;
  for (std::size_t j = 0; j < kPanel; ++j) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * j, sizeof bits);
    const float value = std::fma(scale, products[j], bf16_to_float(bits));
    result.finite &= (std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu) < kInfinite;
    if (std::fabs(value) < limit) suspects |= std::uint64_t{1} << j;
    bits = float_to_bf16(value);
    std::memcpy(to + 2 * j, &bits, sizeof bits);
  }
  result.marked |= suspects != 0;
  return suspects;
}

// Sums to results of one row: whether all are ordinary numbers, not below the limit.
PEFT_PAIRS_TARGET inline bool finish_row(__m512 scale, const __m512 (&d)[kVectors], const std::byte* from,
                                         std::byte* to, std::uint32_t least) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(least)), magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i most = _mm512_setzero_si512();  // of magnitudes above the least; those below wrap around
#pragma GCC unroll 2
  for (std::size_t v = 0; v < kVectors; v += 2) {
    __m512 values[2];
#pragma GCC unroll 2
    for (std::size_t h = 0; h < 2; ++h) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + (v + h) * kLanes * 2));
      const __m512 weight = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      values[h] = _mm512_fmadd_ps(scale, d[v + h], weight);
      most = _mm512_max_epu32(most, _mm512_sub_epi32(_mm512_and_si512(_mm512_castps_si512(values[h]), magnitude), low));
    }
    _mm512_storeu_si512(to + v * kLanes * 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values[1], values[0])));
  }
  return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(static_cast<int>(kInfinite - least))) == 0;
}

template <std::size_t kRows>
PEFT_PAIRS_TARGET inline void merge_rows(float scale, const Strip& strip, std::size_t row, std::size_t panel,
                                         StripResult& result) {
  __m512 sums[kRows][kVectors];
  multiply_rows<kRows>(static_cast<const std::uint32_t*>(strip.left) + row * strip.width, strip.width,
                       static_cast<const std::uint32_t*>(strip.right) + panel * strip.width * kPanel, sums);
  const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
    const auto r = static_cast<std::int64_t>(row + i);
    const std::byte* from = strip.base + r * strip.base_pitch + static_cast<std::int64_t>(panel * kPanel * 2);
    std::byte* to = strip.out + r * strip.out_pitch + static_cast<std::int64_t>(panel * kPanel * 2);
    fetch_ahead(from, strip.base_pitch, kPanel * 2);
    const float limit = strip.row_limits == nullptr ? 0 : strip.row_limits[row + i] * strip.panel_limits[panel];
    const std::uint32_t least = std::clamp(std::bit_cast<std::uint32_t>(limit), kNormal, kInfinite);
    std::uint64_t suspects = 0;
    if (!finish_row(factor, sums[i], from, to, least))
      suspects = finish_slowly(scale, sums[i], from, to, limit, result);
    if (strip.suspects != nullptr) strip.suspects[panel * kTileRows + row + i] = suspects;
  }
}

PEFT_PAIRS_TARGET StripResult merge_all(float scale, const Strip& strip) {
  StripResult result;
  for (std::size_t panel = 0; panel < strip.panels(); ++panel) {
    std::size_t row = 0;
    for (; row + 4 <= strip.rows; row += 4) merge_rows<4>(scale, strip, row, panel, result);
    for (; row < strip.rows; ++row) merge_rows<1>(scale, strip, row, panel, result);
  }
  return result;
}

// Whether the processor's products are the chain that merges are defined by.
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

StripResult merge_strip_of_pairs(float scale, const Strip& strip) { return merge_all(scale, strip); }

#else

bool has_pair_products() { return false; }
void multiply_pairs(const std::uint32_t*, std::size_t, std::size_t, const std::uint32_t*, float*) {}
StripResult merge_strip_of_pairs(float, const Strip&) { return {}; }

#endif

}  // namespace peft::execution
