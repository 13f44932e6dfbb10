// peft merge: adds adapters to a model on disk.
#pragma once

#include <string>
#include <vector>

#include "cli/input_flags.h"
#include "peft/execute.h"
#include "peft/merge.h"

namespace peft::cli {

struct MergeCommand {
  std::string base, out, mode = "best", base_dtype, out_dtype, max_shard_size, part;
  std::vector<std::string> adapters;  // DIR@WEIGHT
  std::string report;                 // --report FILE
  InputFlags input;
  bool keep_quantized = false, base_is_residual = false, allow_repeat = false;
  bool dry_run = false, quiet = false, json = false, resume = false;
  ExecuteOptions execute;
};
MergeOptions merge_options(const MergeCommand& command);
ExecuteOptions execute_options(const MergeCommand& command);  // without progress and cancellation
int run(const MergeCommand& command);

}  // namespace peft::cli
