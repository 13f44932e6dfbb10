// peft generate: continues a prompt, and prints as it goes.
#pragma once

#include "cli/runtime/runtime.h"

namespace peft::torch_cli {

int run_generate(const cli::GenerateCommand& command);

}  // namespace peft::torch_cli
