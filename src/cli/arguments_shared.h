// What the files that define flags share. Includes CLI11.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/combine.h"
#include "cli/extract.h"
#include "cli/input_flags.h"
#include "cli/merge.h"
#include "cli/resize.h"
#include "cli/runtime.h"
#include "cli/verify.h"

namespace peft::cli {

// A check that does not add its range to the value's name in --help.
CLI::Validator quiet(CLI::Validator check);
// How to read an adapter; `two`: some flags may be given for A, then for B.
void add_input_flags(CLI::App& verb, InputFlags& input, bool two);
void add_json(CLI::App& verb, bool& json);
// How output is written: --overwrite, --threads, --no-sync, --no-readback, --quiet.
void add_execute_flags(CLI::App& verb, ExecuteOptions& execute, bool& quiet);

struct LowRankCommands {
  CombineCommand combine;
  ResizeCommand resize;
  ExtractCommand extract;
};
void add_low_rank(CLI::App& app, LowRankCommands& commands);  // arguments_low_rank.cpp

struct RuntimeCommands {
  LogitsCommand logits;
  GenerateCommand generate;
  ParamsCommand params;
};
void add_runtime(CLI::App& app, RuntimeCommands& commands);  // arguments_runtime.cpp
void add_merge(CLI::App& app, MergeCommand& command);        // arguments_merge.cpp
void add_verify(CLI::App& app, VerifyCommand& command);      // arguments_verify.cpp

}  // namespace peft::cli
