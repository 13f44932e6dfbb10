// What PEFT tells about a model with adapters: counts and states.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "nn/lora/state.h"

namespace peft::nn {

// Trainable parameters, and all.
std::pair<std::int64_t, std::int64_t> count_parameters(const PeftModel::Impl& impl);
std::vector<LayerStatus> layer_status(const PeftModel::Impl& impl);
ModelStatus model_status(const PeftModel::Impl& impl);

}  // namespace peft::nn
