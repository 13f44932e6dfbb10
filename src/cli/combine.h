// peft combine: makes one adapter of several.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/input_flags.h"
#include "cli/low_rank_output.h"

namespace peft::cli {

struct CombineCommand {
  std::vector<std::string> adapters;  // DIR@WEIGHT
  std::string type = "svd", majority_sign_method = "total";
  std::int64_t svd_rank = 0;
  std::optional<double> density;
  std::uint64_t seed = 0;
  InputFlags input;
  ResultFlags result;
};
int run(const CombineCommand& command);

}  // namespace peft::cli
