// A plan that does not hold together is a bug in whoever made it; it must not become a wild read or write.
#pragma once

#include "peft/plan.h"

namespace peft::plan {

// Throws INTERNAL unless every view lies inside its source tensor, every block inside its output tensor, and
// every conversion is one between floating-point types.
void check(const Plan& plan);

}  // namespace peft::plan
