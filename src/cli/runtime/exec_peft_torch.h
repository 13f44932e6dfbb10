// How peft runs a model: it becomes peft-torch.
//
// There are two programs with one command line (CMakeLists.txt). peft is small and links no libtorch. peft-torch links
// it and defines run() of the verbs that need it (src/torch_cli). exec_peft_torch.cpp defines the same functions for
// peft: each starts the other program in place of this process, with the same arguments. So a source list has either
// exec_peft_torch.cpp or src/torch_cli, never both.
//
// peft-torch is looked for
//   * where the environment variable PEFT_TORCH says, and nowhere else, when it is set;
//   * beside this program, as in a build folder;
//   * in ../libexec/peft, as in an installation;
//   * in the folders of PATH. An empty entry of PATH would be the current folder, which is not searched: whoever can
//     write there could choose the program.
#pragma once

#include <string>
#include <vector>

namespace peft::cli {

// The paths that are tried, in that order.
std::vector<std::string> places_of_peft_torch();

// Replaces this process by peft-torch with the same command line. Throws RT_PROGRAM when it cannot.
[[noreturn]] void exec_peft_torch(const std::vector<std::string>& command_line);

}  // namespace peft::cli
