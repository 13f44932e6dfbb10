// A config that says tied, and a file whose output embedding has other values than the input embedding. transformers 5
// uses both and warns; transformers 4 drops the output embedding and ties. Here both are used.
#pragma once

#include <string>

#include "peft/weights.h"

namespace peft::weights {

// Compares the two tensors a piece at a time, up to the first difference. False where the config does not say tied.
bool has_own_output(const Model& model, const Checkpoint& checkpoint, const Weights& weights);

// What is said then. `config`: the path of the config.json.
std::string own_output_text(const std::string& config);

}  // namespace peft::weights
