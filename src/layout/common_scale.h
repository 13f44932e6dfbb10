// The one scale of a fused pair.
#pragma once

#include <vector>

#include "peft/adapter.h"

namespace peft::layout {

// The scale most factors have: the others are folded into B, one rounding each. Zero only where all are: alpha may be
// 0.
double common_scale(const std::vector<const Factor*>& factors);

// What B of a factor is multiplied by where the scale is `common`.
double folded_gain(const Factor& factor, double common);

}  // namespace peft::layout
