// save_pretrained's path_initial_model_for_weight_conversion: an adapter that began by changing the base, as one for
// the base before that.
#pragma once

#include <string>

#include "nn/lora/memory_file.h"
#include "peft/config.h"

namespace peft::nn {

// W_res + s B A = W + s (B A - B0 A0): A becomes [A; A0], B becomes [B, -B0], the rank twice what it was. `folder` has
// A0 and B0, the adapter as it was saved before training.
void take_out_start(const std::string& folder, AdapterConfig& config, NamedTensors& tensors);

}  // namespace peft::nn
