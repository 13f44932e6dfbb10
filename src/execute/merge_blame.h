// Whose fault a result is that is no number.
#pragma once

#include "peft/plan.h"

namespace peft::execution {

// Throws NUM_NONFINITE naming the source tensor (of the base or of an adapter) that holds NaN or infinity; NUM_OVERFLOW
// naming the planned tensor when all are finite.
[[noreturn]] void blame_merge(const Plan& plan, const PlannedTensor& tensor);

}  // namespace peft::execution
