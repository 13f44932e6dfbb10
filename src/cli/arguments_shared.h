// What the files that define flags share. Includes CLI11.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/runtime.h"

namespace peft::cli {

// A check that does not add its range to the value's name in --help.
CLI::Validator quiet(CLI::Validator check);
void add_json(CLI::App& verb, bool& json);

struct RuntimeCommands {
  LogitsCommand logits;
  GenerateCommand generate;
  ParamsCommand params;
};
void add_runtime(CLI::App& app, RuntimeCommands& commands);  // arguments_runtime.cpp

}  // namespace peft::cli
