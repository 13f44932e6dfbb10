// Routers and experts.
#pragma once

#include "nn/forward/pass.h"

namespace peft::nn {

Tensor run_moe(Pass& pass, const Moe& moe, const Tensor& x);
// From the routers' logits that the pass kept: a scalar, not multiplied by its coefficient.
Tensor load_balancing_loss(const Pass& pass);

}  // namespace peft::nn
