// peft verify: whether two adapters are the same function.
#pragma once

#include <string>

#include "cli/input_flags.h"

namespace peft::cli {

struct VerifyCommand {
  std::string a, b;
  InputFlags input;
  std::string tolerance = "rounded";
  int threads = 0;
  bool json = false;
};
int run(const VerifyCommand& command);  // 0 the same, 1 different

}  // namespace peft::cli
