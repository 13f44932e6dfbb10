// peft params: what LoRA trains, and all there is. Shapes only: no weight is read.
#pragma once

#include <string>

#include "cli/runtime/runtime.h"

namespace peft::torch_cli {

int run_params(const cli::ParamsCommand& command);

// "model.layers.3.mlp.gate" -> "model.layers.*.mlp.gate": numbers between dots become stars.
std::string without_numbers(const std::string& name);

}  // namespace peft::torch_cli
