#include "cli/runtime/exec_peft_torch.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "cli/runtime/runtime.h"
#include "cli/runtime/train.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

namespace fs = std::filesystem;
constexpr const char* kProgram = "peft-torch";

std::vector<std::string> split_path(const char* path) {
  std::vector<std::string> folders;
  std::string text = path == nullptr ? "" : path;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find(':', begin), text.size());
    if (end > begin)
      folders.push_back(text.substr(begin, end - begin));  // an empty entry, the current folder, is unsafe
    begin = end + 1;
  }
  return folders;
}

}  // namespace

std::vector<std::string> places_of_peft_torch() {
  if (const char* named = std::getenv("PEFT_TORCH"); named != nullptr && *named != '\0') return {named};
  std::vector<std::string> places;
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back((self.parent_path() / kProgram).string());
    places.push_back((self.parent_path().parent_path() / "libexec" / "peft" / kProgram).string());
  }
  for (const auto& folder : split_path(std::getenv("PATH"))) places.push_back((fs::path(folder) / kProgram).string());
  return places;
}

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
  at(places.empty() ? kProgram : places.front())
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
