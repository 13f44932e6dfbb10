// Finds NaN and infinity in output, and the source tensor that they come from.
#pragma once

#include <cstddef>
#include <span>

#include "peft/plan.h"

namespace peft::execution {

// Whether all elements are finite; true for dtypes without NaN. Cheap while the bytes are in the cache.
bool all_finite(std::span<const std::byte> bytes, Dtype dtype);

// Finds the source tensor of a NaN or infinity. Throws NUM_NONFINITE that names it, with counts and the first index.
[[noreturn]] void throw_nonfinite(const Plan& plan, const PlannedTensor& tensor);

// The same for a merged tensor: looks at the base and at the adapters. If all of them are finite, throws NUM_OVERFLOW
// that names the planned tensor.
[[noreturn]] void throw_nonfinite_merge(const Plan& plan, const PlannedTensor& tensor);

}  // namespace peft::execution
