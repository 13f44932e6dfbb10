// peft targets: which modules and parameters of a model a config puts LoRA on.
#pragma once

#include <string>

#include "cli/output/json.h"

namespace CLI {
class App;
}

namespace peft::cli {

struct TargetsCommand {
  std::string path, base, families_file;
  std::string generation;  // "", "v4", "v5": whose module names; "" is what the base and the config suggest
  std::string as_of;       // "", or a PEFT version whose rules hold: "0.18.1"
  bool json = false;
};
void add_targets(CLI::App& app, TargetsCommand& command);
int run(const TargetsCommand& command);
Json result(const TargetsCommand& command);  // what --json prints

}  // namespace peft::cli
