// A program run as a user runs it.
#pragma once

#include <string>
#include <vector>

namespace peft::testing {

struct ProgramResult {
  int exit_code = -1;  // 128 + N when a signal ended it
  std::string out, err;
};
// `environment` holds NAME=VALUE pairs that are added to this process' own.
ProgramResult run_program(const std::string& program, const std::vector<std::string>& arguments,
                          const std::vector<std::string>& environment = {});

}  // namespace peft::testing
