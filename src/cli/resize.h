// peft resize: writes an adapter at a lower rank.
#pragma once

#include <string>

#include "cli/input_flags.h"
#include "cli/low_rank_output.h"

namespace peft::cli {

struct ResizeCommand {
  std::string adapter;
  std::int64_t rank = 0;
  InputFlags input;
  ResultFlags result;
};
int run(const ResizeCommand& command);

}  // namespace peft::cli
