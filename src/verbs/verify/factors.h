// Decides how the factors of one module differ between two adapters. The classes, from the strictest:
//
//   bit-exact    same rank, scale and dtypes; the same bytes in A and in B
//   value-exact  what is left after dropping components that are zero pairs up in order: A_y = f A_x and
//                s_y f B_y = s_x B_x exactly, f a power of two (either sign) for each component; or the same with A and
//                B in each other's role. A factor that is missing on one side is a zero one.
//   rounded      as above, but elements may be off by one rounding where there was a reason to round:
//                u = 2^-24, 2^-11, 2^-8 (F32, F16, BF16) of the coarser dtype if the dtypes differ or the scales'
//                ratio is no power of two, plus 2^-24 in the latter case (the product itself was rounded).
//                Or the basis is another one (the order of the components, or the components themselves), and
//                ||dW_x - dW_y|| is no more than rounding both sides once explains: basis.h.
//   lossy        anything else: a different function. In the same basis, same dtypes and scales leave no room for
//                rounding, so a single flipped bit lands here, however small it is.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "peft/adapter.h"
#include "peft/plan.h"
#include "peft/safetensors.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {

struct FactorPair {
  const Factor* x = nullptr;  // null: this side has none. Not both
  const Factor* y = nullptr;
};

// One verdict for each pair. Pairs of one module belong into one call: their tensors are walked once, together.
std::vector<Verdict> compare_factors(std::span<const FactorPair> pairs, const TensorFile& file_x,
                                     const TensorFile& file_y);

// Another site of the second adapter that holds exactly what x holds (experts or projections that trade places);
// null if there is none.
const Factor* find_twin(const Factor& x, const TensorFile& file_x, std::span<const Factor> candidates,
                        const TensorFile& file_y);

}  // namespace peft::verbs
