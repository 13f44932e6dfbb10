// A plan that does not hold together is a bug in whoever made it; it must not become a wild read or write.
#pragma once

#include "peft/plan.h"

namespace peft::plan {

// True for the types a value can be scaled in or converted between.
bool is_float(Dtype dtype);

// Of 16 bits and more: numbers by themselves. Narrower ones are codes, which mean something with their scales only.
bool is_plain_float(Dtype dtype);

// Throws INTERNAL unless every view lies inside its source tensor, every block inside its output tensor, and
// every conversion is one between floating-point types.
void check(const Plan& plan);

}  // namespace peft::plan
