// How peft runs a model: it becomes peft-torch.
//
// There are two programs with one command line (CMakeLists.txt):
//   peft        is small and links no libtorch. Its run() of logits, generate, params and train, in
//               exec_peft_torch.cpp, starts the other program in place of this process, with the same arguments.
//   peft-torch  links libtorch. It has run() of these verbs from src/torch_cli.
// So a program is linked with exec_peft_torch.cpp or with src/torch_cli, never with both.
//
// Where peft-torch is looked for (places_of_peft_torch in runtime.h):
//   * where the environment variable PEFT_TORCH says, and nowhere else, when it is set;
//   * beside this program, as in a build folder;
//   * in ../libexec/peft, as in an installation;
//   * in the folders of PATH.
// An empty entry of PATH means the current folder. It is left out: whoever can write there could choose the program.
// The first file that may be executed is taken; a script or a link is fine. Without one the error RT_PROGRAM names the
// first place and says how to build the program.
//
// `peft doctor --endpoint` also needs peft-torch, as a process of its own whose output it reads (endpoint/native.h).
// Both programs have that verb, so the places are in runtime.h.
#pragma once

#include <string>
#include <vector>

namespace peft::cli {

// Replaces this process by peft-torch with the same command line. Throws RT_PROGRAM when it cannot.
[[noreturn]] void exec_peft_torch(const std::vector<std::string>& command_line);

}  // namespace peft::cli
