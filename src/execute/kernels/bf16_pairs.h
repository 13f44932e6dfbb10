// Products of bf16 factors with the processor's bf16 dot product (vdpbf16ps): two steps of the chain in one
// instruction.
//
// A lane computes fma(low, low', fma(high, high', sum)) from the two halves of its words. With element 2k of a chain in
// the high half and element 2k + 1 in the low half, this equals the chain of fused multiply-adds bit for bit, with one
// exception: the instruction treats numbers below 2^-126 as zero. Factors whose nonzero elements are all at least
// kSmallestSafe never produce such numbers.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "execute/kernels/pack_factors.h"
#include "execute/kernels/strip_operands.h"

namespace peft::execution {

// Whether this processor has the instruction and it computes the chain described above. Tested once, at the first call.
bool has_pair_products();

constexpr std::size_t pairs_of(std::size_t rank) { return (rank + 1) / 2; }

// multiply() for packed words: left[i * pairs + p], right[p * kPanel + j].
void multiply_pairs(const std::uint32_t* left, std::size_t rows, std::size_t pairs, const std::uint32_t* right,
                    float* tile);

// pack_left() and pack_right() for two bf16 factors, as words of two elements. Requires has_pair_products(). `safe` is
// set to false if an element is nonzero and smaller than kSmallestSafe.
bool can_pair(const Plan& plan, const Sides& sides);
void pair_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, std::uint32_t* out,
               float* norms, bool& safe);
float pair_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel,
                 std::uint32_t* out, bool& safe);

// merge_strip() for whole panels in bf16 with AddRule::fused. Sums stay in registers until the result is stored.
StripResult merge_strip_of_pairs(float scale, const Strip& strip);

// Elements 2p and 2p + 1 of a chain: the halves of word p.
constexpr float first_of(std::uint32_t word) { return std::bit_cast<float>(word & 0xFFFF0000u); }
constexpr float second_of(std::uint32_t word) { return std::bit_cast<float>(word << 16); }

// If all nonzero elements are at least this large, no nonzero product or sum is below 2^-126: every sum is a multiple
// of the product of two last places, 2^-63 each.
inline constexpr std::uint32_t kSmallestSafe = (127 - 56) << 7;  // as bits of a bf16

}  // namespace peft::execution
