// peft params: what LoRA trains, and all there is. Shapes only: no weight is read.
#pragma once

#include "cli/runtime/runtime.h"

namespace peft::torch_cli {

int run_params(const cli::ParamsCommand& command);

}  // namespace peft::torch_cli
