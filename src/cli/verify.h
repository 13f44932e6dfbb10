// peft verify: whether two adapters are the same function, or a model is its base with adapters merged.
#pragma once

#include <string>
#include <vector>

#include "cli/input_flags.h"

namespace peft::cli {

struct VerifyCommand {
  std::vector<std::string> adapters;  // A and B; with --merged one or more DIR@WEIGHT
  std::string merged;
  InputFlags input;
  std::string tolerance = "rounded";
  int threads = 0;
  bool base_is_residual = false, json = false;

  // Throws USAGE: two without --merged, a --base with it.
  void require_adapters() const;
};
int run(const VerifyCommand& command);         // 0 the same, 1 different
int run_merged(const VerifyCommand& command);  // verify_merged.cpp

// What follows a table of differences: how many are not in it, and the notes.
void print_rest(std::int64_t not_shown, const std::vector<std::string>& notes);

}  // namespace peft::cli
