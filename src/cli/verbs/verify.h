// peft verify: whether two adapters are the same function, or a model is its base with adapters merged.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"
#include "cli/output/json.h"

namespace peft::cli {

struct VerifyCommand {
  std::vector<std::string> adapters;  // A and B; with --merged one or more DIR@WEIGHT
  std::string merged;
  InputFlags input;
  std::string tolerance = "rounded";
  int threads = 0;
  bool base_is_residual = false, json = false;

  // Throws USAGE: without --merged it takes two, with it a --base and one or more.
  void require_adapters() const;
};
void add_verify(CLI::App& app, VerifyCommand& command);
int run(const VerifyCommand& command);      // 0 the same, 1 different
Json result(const VerifyCommand& command);  // what --json prints

}  // namespace peft::cli
