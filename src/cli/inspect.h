// peft inspect: what an adapter is, on one screen.
#pragma once

#include <string>

#include "cli/input_flags.h"

namespace peft::cli {

struct InspectCommand {
  std::string path;
  InputFlags input;
  bool json = false;
};
int run(const InspectCommand& command);

}  // namespace peft::cli
