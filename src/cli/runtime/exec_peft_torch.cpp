#include "cli/runtime/exec_peft_torch.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "cli/runtime/runtime.h"
#include "cli/runtime/train.h"
#include "peft/error.h"

namespace peft::cli {

void exec_peft_torch(const std::vector<std::string>& command_line) {
  const auto places = places_of_peft_torch();
  for (const auto& program : places) {
    if (access(program.c_str(), X_OK) != 0) continue;
    std::vector<char*> argv{const_cast<char*>(program.c_str())};
    for (const auto& argument : command_line) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(program.c_str(), argv.data());
    at(program).fail(ErrorCode::RT_PROGRAM, {.problem = fmt::format("cannot be started: {}", std::strerror(errno))});
  }
  at(places.empty() ? "peft-torch" : places.front())
      .fail(ErrorCode::RT_PROGRAM,
            {.problem = "peft-torch, the part of peft that runs models, is not there",
             .expected = "beside peft, in ../libexec/peft, in PATH, or where PEFT_TORCH says",
             .hint = "build it with `make build`, or with cmake -DPEFT_WITH_TORCH=ON (docs/building.md)"});
}

int run(const LogitsCommand& command) { exec_peft_torch(command.model.command_line); }
int run(const GenerateCommand& command) { exec_peft_torch(command.model.command_line); }
int run(const ParamsCommand& command) { exec_peft_torch(command.model.command_line); }
int run(const TrainCommand& command) { exec_peft_torch(command.model.command_line); }

}  // namespace peft::cli
