// Finds NaN and infinity in output, and the source tensor that they come from.
//
// all_finite() is the check of every run. The functions that throw run once it has failed: they read the sources again,
// element by element, to name the culprit. A factor that holds NaN comes from a training run that diverged; a base that
// holds NaN is a damaged download.
#pragma once

#include <cstddef>
#include <span>

#include "peft/plan.h"

namespace peft::execution {

// Whether all elements are finite; true for dtypes without NaN. `bytes` may start at any address and holds whole
// elements. Runs at the speed of memory, and costs next to nothing while the bytes are in the cache.
bool all_finite(std::span<const std::byte> bytes, Dtype dtype);

// For a tensor that is copied or converted: finds the source tensor of a NaN or infinity. Throws NUM_NONFINITE that
// names it, with counts and the first index.
[[noreturn]] void throw_nonfinite(const Plan& plan, const PlannedTensor& tensor);

// For a merged tensor: looks at the factors of every adapter, then at the base. If all of them are finite, throws
// NUM_OVERFLOW that names the planned tensor.
[[noreturn]] void throw_nonfinite_merge(const Plan& plan, const PlannedTensor& tensor);

}  // namespace peft::execution
