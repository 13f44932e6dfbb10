// Attention over keys and values: rotary positions, masks and windows, sinks and output gates.
#pragma once

#include "nn/forward/pass.h"

namespace peft::nn {

// Fills in cos and sin of the pass for positions [1 or sequences, tokens].
void set_rotary(Pass& pass, const Tensor& positions);
Tensor run_attention(Pass& pass, const Layer& layer, const Tensor& x);

}  // namespace peft::nn
