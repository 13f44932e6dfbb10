// Compares tensors that are carried along whole: DoRA magnitudes, biases, saved modules, token deltas.
#pragma once

#include "peft/safetensors.h"
#include "verbs/verify_factors.h"

namespace peft::verbs {

// Same values: bit- or value-exact. Another dtype and one rounding to the coarser one: rounded. Else different.
Verdict compare_tensors(const TensorFile& file_x, const TensorInfo& x, const TensorFile& file_y, const TensorInfo& y);

}  // namespace peft::verbs
