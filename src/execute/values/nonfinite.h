// NaN and infinity in what is about to be written. Checked while the bytes are in cache, so that it costs next to
// nothing.
#pragma once

#include <cstddef>
#include <span>

#include "peft/plan.h"

namespace peft::execution {

// Whether all elements are finite. Dtypes without NaN are.
bool all_finite(std::span<const std::byte> bytes, Dtype dtype);

// Throws NUM_NONFINITE, naming the source tensor of `tensor` that holds the value, with counts and the first index.
[[noreturn]] void throw_nonfinite(const Plan& plan, const PlannedTensor& tensor);

// Throws NUM_NONFINITE naming the source tensor (of the base or of an adapter) that holds NaN or infinity; NUM_OVERFLOW
// naming the planned tensor when all are finite.
[[noreturn]] void throw_nonfinite_merge(const Plan& plan, const PlannedTensor& tensor);

}  // namespace peft::execution
