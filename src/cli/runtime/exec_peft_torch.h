// How peft runs a model: it becomes peft-torch.
//
// There are two programs with one command line (CMakeLists.txt):
//   peft        is small and links no libtorch. Its run() of logits, generate and params, in exec_peft_torch.cpp,
//   starts
//               the other program in place of this process, with the same arguments.
//   peft-torch  links libtorch. It has run() of these verbs from src/torch_cli.
// So a program is linked with exec_peft_torch.cpp or with src/torch_cli, never with both. Where peft-torch is looked
// for: runtime.h.
#pragma once

#include <string>
#include <vector>

namespace peft::cli {

// Replaces this process by peft-torch with the same command line. Throws RT_PROGRAM when it cannot.
[[noreturn]] void exec_peft_torch(const std::vector<std::string>& command_line);

}  // namespace peft::cli
