// Single values of a plan's sources, as doubles: slow and simple.
#pragma once

#include <cstdint>

#include "peft/plan.h"

namespace peft::execution {

double value_at(const Plan& plan, const View& view, std::int64_t row, std::int64_t col);
// Element (row, col) of a block as it stands in the output: dequantised and scaled, not yet rounded.
double value_at(const Plan& plan, const Block& block, std::int64_t row, std::int64_t col);

double rounded_to(Dtype dtype, double value);

// Value of a 4-bit code.
float mxfp4_value(unsigned code);

}  // namespace peft::execution
