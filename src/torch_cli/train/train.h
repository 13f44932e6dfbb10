// peft train: from a data file to an adapter folder.
#pragma once

#include "cli/runtime/train.h"

namespace peft::torch_cli {

int run_train(const cli::TrainCommand& command);

}  // namespace peft::torch_cli
