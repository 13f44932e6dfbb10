// The factors and further tensors of a reading, put on the model's modules.
#pragma once

#include "nn/lora/state.h"
#include "peft/verbs.h"

namespace peft::nn {

// Every tensor goes to its site or is named in an error. Throws NUM_NONFINITE, LO_TARGET, LO_SHAPE, LO_UNUSED.
void place_tensors(PeftModel::Impl& impl, const Input& input, int id);

}  // namespace peft::nn
