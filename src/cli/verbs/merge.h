// peft merge: adds adapters to a model on disk.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"
#include "cli/output/json.h"
#include "peft/verbs.h"

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
void add_merge(CLI::App& app, MergeCommand& command);
int run(const MergeCommand& command);
// What --json prints.
Json result(const MergeCommand& command, const Executor& execute);

}  // namespace peft::cli
