// The fast path of a merge: loads a few rows of W, adds one product, and stores the result in one pass. Most weights of
// most merges take it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/kernels/strip_operands.h"

namespace peft::execution {

// out = options.rule(W, d), where W is strip.base and d the product of strip.left and strip.right.
//
// * Weights and results have dtype options.base: bf16, f16 or f32. Each result is rounded once, to nearest even, with
//   the bits that multiply() and apply_rule() give, on every instruction set.
// * With row_limits, bits of strip.cancelled are set for results that the caller has to recompute in fp64. They are set
//   for AddRule::fused only. Which bits are set does not depend on the instruction set.
// * Paired strips of whole panels go to merge_strip_of_pairs() (bf16_pairs.h), which keeps all sums in registers.
//
// Reads and writes columns [strip.begin, strip.end) of strip.rows rows, and nothing outside of them.
StripResult merge_strip(const AddOptions& options, const Strip& strip);

// The same for fp32 weights and packed factors of fp64: fma(scale, d, W) in fp64, rounded to fp32, then to `out`: f32,
// f16 or bf16. Limits are not looked at. `base` and `out` may be the same memory.
StripResult merge_strip_in_fp64(double scale, Dtype out, const Strip& strip);

}  // namespace peft::execution
