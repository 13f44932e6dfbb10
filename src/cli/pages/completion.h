// peft completion: a completion script for a shell, made from the flags the program really has.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace peft::cli {

// What a flag's value is, as far as completion is concerned.
enum class ValueKind { none, text, path };

struct FlagInfo {
  std::string name;  // "--to"
  std::string description = {};
  ValueKind value = ValueKind::none;
  std::vector<std::string> choices = {};  // the values there are, when they are known
};
struct VerbInfo {
  std::string name, description;
  std::vector<FlagInfo> flags = {};
  std::vector<std::string> choices = {};  // of the argument; empty: paths
};

struct CompletionCommand {
  std::string shell;  // bash, zsh, fish
  std::vector<VerbInfo> verbs;
};
void add_completion(CLI::App& app, CompletionCommand& command);
// The flags of all verbs that users see.
std::vector<VerbInfo> describe_verbs(const CLI::App& app);
int run(const CompletionCommand& command);

}  // namespace peft::cli
