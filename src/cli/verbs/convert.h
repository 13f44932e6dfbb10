// peft convert: writes adapters in another layout.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"
#include "cli/output/json.h"

namespace peft::cli {

struct ConvertCommand {
  std::vector<std::string> paths;
  std::string to, engine, out, dtype, gguf_base;  // one of `to` and `engine`
  InputFlags input;
  bool block_diagonal = false;
  bool dry_run = false, config_only = false;
  bool quiet = false, json = false;
  ExecuteOptions execute;
};
void add_convert(CLI::App& app, ConvertCommand& command);
// One path: throws what goes wrong. Several: a failure is reported in the table and the others go on; the exit
// code is that of the first failure.
int run(const ConvertCommand& command);
// What --json prints, of one path.
Json result(const ConvertCommand& command, const Executor& execute);

}  // namespace peft::cli
