// Linear attention with the gated delta rule: a state matrix per head that decays, forgets what the key held, and
// learns the new value. Prompts go through it in chunks, single tokens step by step.
#pragma once

#include "nn/forward/pass.h"

namespace peft::nn {

Tensor run_delta_net(Pass& pass, const Layer& layer, const Tensor& x);

}  // namespace peft::nn
