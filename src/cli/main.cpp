// peft, and peft-torch: the command line as a process.
#include <algorithm>
#include <string>
#include <vector>

#include "cli/arguments.h"

int main(int argc, char** argv) {
  return peft::cli::run_program(std::vector<std::string>(argv + 1, argv + std::max(argc, 1)));
}
