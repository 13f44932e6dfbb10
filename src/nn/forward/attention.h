// Attention over keys and values, with rotary positions, masks and windows, sinks and output gates; and linear
// attention with the gated delta rule: a state matrix per head that decays, forgets what the key held, and learns the
// new value.
#pragma once

#include "nn/forward/pass.h"

namespace peft::nn {

// Fills in cos and sin of the pass for positions [1 or sequences, tokens].
void set_rotary(Pass& pass, const Tensor& positions);
Tensor run_attention(Pass& pass, const Layer& layer, const Tensor& x);
// Prompts go through the delta rule in chunks, single tokens step by step.
Tensor run_delta_net(Pass& pass, const Layer& layer, const Tensor& x);

}  // namespace peft::nn
