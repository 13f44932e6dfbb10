// peft-torch, the second executable: it links libtorch and carries out the verbs that run a model.
#pragma once

#include <string>
#include <vector>

namespace peft::cli {

// Where peft-torch is looked for, in this order: $PEFT_TORCH alone when set; else beside this program, in
// ../libexec/peft, and in the folders of $PATH.
std::vector<std::string> places_of_peft_torch();

// Replaces this process by peft-torch with the same command line. Throws RT_PROGRAM when it cannot.
[[noreturn]] void hand_over(const std::vector<std::string>& command_line);

}  // namespace peft::cli
