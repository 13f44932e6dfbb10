// The command line as a function: parses, runs one verb, turns what goes wrong into one line and an exit code. The
// program peft is this and nothing else; so is the console command of the Python package.
#pragma once

#include <string>
#include <vector>

namespace peft::cli {

// `arguments` is without the program's name. Changes the process: signals, how memory is kept. To be called once.
int run_program(std::vector<std::string> arguments);

}  // namespace peft::cli
