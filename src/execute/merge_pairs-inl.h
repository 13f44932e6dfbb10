// Products of pairs in registers, for the files that use them.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12, of undefined values that its own header means to be so
#include <immintrin.h>
#define PEFT_HAS_PAIRS 1
#define PEFT_PAIRS_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

#include <cstddef>
#include <cstdint>

#include "execute/merge_kernel.h"

namespace peft::execution {

constexpr std::size_t kPairLanes = 16, kPairVectors = kPanel / kPairLanes;

PEFT_PAIRS_TARGET inline __m512 add_pair(__m512 sum, __m512i left, __m512i right) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
}

// kRows rows of a panel stay in registers while the chain runs.
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

}  // namespace peft::execution

#endif
