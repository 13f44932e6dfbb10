// peft inspect: what an adapter is, on one screen.
#pragma once

#include <string>

#include "cli/flags.h"
#include "cli/output/json.h"

namespace peft::cli {

struct InspectCommand {
  std::string path;
  InputFlags input;
  bool json = false;
};
void add_inspect(CLI::App& app, InspectCommand& command);
int run(const InspectCommand& command);     // 1 where the file cannot be decoded
Json to_json(const InspectReport& report);  // what --json prints

}  // namespace peft::cli
