// The one scale of a fused pair.
#pragma once

#include <vector>

#include "peft/adapter.h"

namespace peft::layout {

// The scale most factors have: the others are folded into B, one rounding each.
double common_scale(const std::vector<const Factor*>& factors);

}  // namespace peft::layout
