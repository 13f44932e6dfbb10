// Running a model: one forward pass from ids to logits, and the passes that generate tokens (declared in
// peft/nn/model.h).
#pragma once

#include "nn/model/network.h"

namespace peft::nn {

ForwardOutput run_forward(const CausalLM::Impl& model, const ForwardInput& input, const ForwardContext& context);

}  // namespace peft::nn
