// peft logits: one forward pass. The logits go to the screen and to a file that appears complete or not at all.
#pragma once

#include "cli/runtime/runtime.h"

namespace peft::torch_cli {

int run_logits(const cli::LogitsCommand& command);

}  // namespace peft::torch_cli
