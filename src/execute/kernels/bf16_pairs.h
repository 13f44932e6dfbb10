// Products of bf16 factors by the processor's bf16 dot products (vdpbf16ps), two steps of the chain at a time.
//
// A lane computes fma(low, low', fma(high, high', sum)) of the two halves of its words: with element 2k of a chain in
// the high half and element 2k + 1 in the low one that is the chain itself, bit for bit. Only that it takes numbers
// below 2^-126 for zero: factors of kSmallestSafe and more have none.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "execute/kernels/pack_factors.h"
#include "execute/kernels/strip.h"

namespace peft::execution {

// Whether this processor has them, and they are the chain described above (tried out once).
bool has_pair_products();

constexpr std::size_t pairs_of(std::size_t rank) { return (rank + 1) / 2; }

// As multiply(), of words: left[i * pairs + p], right[p * kPanel + j].
void multiply_pairs(const std::uint32_t* left, std::size_t rows, std::size_t pairs, const std::uint32_t* right,
                    float* tile);

// As pack_left() and pack_right(), of two bf16 factors, in words of two elements; where has_pair_products(). `safe` becomes
// false where an element is too small for them.
bool can_pair(const Plan& plan, const Sides& sides);
void pair_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, std::uint32_t* out,
               float* norms, bool& safe);
float pair_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel,
                 std::uint32_t* out, bool& safe);

// merge_strip() of whole panels in bf16 with Tail::fused, nothing of which leaves the registers in between.
StripResult merge_strip_of_pairs(float scale, const Strip& strip);

// Elements 2p and 2p + 1 of a chain, from a word.
constexpr float first_of(std::uint32_t word) { return std::bit_cast<float>(word & 0xFFFF0000u); }
constexpr float second_of(std::uint32_t word) { return std::bit_cast<float>(word << 16); }

// Nonzero factors all at least this large have no product or sum below 2^-126: a sum is a multiple of the product of
// their last places, 2^-63 each.
inline constexpr std::uint32_t kSmallestSafe = (127 - 56) << 7;  // as bits of a bf16

}  // namespace peft::execution
