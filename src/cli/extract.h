// peft extract: recovers an adapter from two models.
#pragma once

#include <string>
#include <vector>

#include "cli/low_rank_output.h"

namespace peft::cli {

struct ExtractCommand {
  std::string base, finetuned, family, families_file;
  std::int64_t rank = 0;
  std::vector<std::string> modules_to_save;
  bool ignore_unused = false;
  OpenOptions open;
  ResultFlags result;
};
int run(const ExtractCommand& command);

}  // namespace peft::cli
