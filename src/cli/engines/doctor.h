// peft doctor: will an adapter work where it shall run? peft engines: what is known of each engine.
#pragma once

#include <string>

#include "cli/flags.h"
#include "cli/output/json.h"

namespace peft::cli {

struct DoctorCommand {
  std::string path, engine;
  InputFlags input;
  // A running server; "": none.
  std::string endpoint, model, lora, ids;
  double seconds = 120;
  bool json = false;
};
struct EnginesCommand {
  std::string engine;  // "": all
  bool json = false;
};
void add_doctor(CLI::App& app, DoctorCommand& command);
void add_engines(CLI::App& app, EnginesCommand& command);
int run(const DoctorCommand& command);  // 0 all right, 1 not, 2 an input is bad
int run(const EnginesCommand& command);
Json result(const DoctorCommand& command);  // what --json prints

}  // namespace peft::cli
