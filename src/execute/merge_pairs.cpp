#include "execute/merge_pairs.h"

#include <cmath>
#include <random>

#include "execute/merge_pairs-inl.h"

namespace peft::execution {

#if PEFT_HAS_PAIRS

namespace {

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

#else

bool has_pair_products() { return false; }
void multiply_pairs(const std::uint32_t*, std::size_t, std::size_t, const std::uint32_t*, float*) {}

#endif

}  // namespace peft::execution
