#include "cli/pages/completion.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include "cli/flags.h"
#include "cli/output/output.h"
#include "engines/engine.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

constexpr const char* kCompletionExamples = R"(Examples:
  source <(peft completion bash)
  peft completion zsh > "${fpath[1]}/_peft"
  peft completion fish > ~/.config/fish/completions/peft.fish)";

const std::vector<std::string> kShells = {"bash", "zsh", "fish"};

std::vector<std::string> flag_names(const VerbInfo& verb) {
  std::vector<std::string> names;
  for (const auto& flag : verb.flags) names.push_back(flag.name);
  return names;
}

std::vector<std::string> verb_names(const std::vector<VerbInfo>& verbs) {
  std::vector<std::string> names;
  for (const auto& verb : verbs) names.push_back(verb.name);
  return names;
}

// Text inside single quotes of zsh and fish; ':' and '[' would end a zsh description.
std::string escaped(std::string_view text, bool zsh) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += zsh ? "'\\''" : "\\'";
    } else {
      if (c == '\\' || (zsh && (c == ':' || c == '[' || c == ']'))) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string bash(const std::vector<VerbInfo>& verbs) {
  std::string text =
      "# bash completion of peft: source <(peft completion bash)\n_peft() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n";
  text += fmt::format("    COMPREPLY=($(compgen -W \"{} --help --version\" -- \"$word\"))\n    return\n  fi\n",
                      fmt::join(verb_names(verbs), " "));
  text += "  case \"${COMP_WORDS[1]} $before\" in\n";
  for (const auto& verb : verbs) {
    for (const auto& flag : verb.flags) {
      if (flag.choices.empty() && flag.value != ValueKind::text) continue;
      text += fmt::format("    \"{} {}\") COMPREPLY=($(compgen -W \"{}\" -- \"$word\")); return ;;\n", verb.name,
                          flag.name, fmt::join(flag.choices, " "));
    }
  }
  text += "  esac\n  if [[ $word == -* ]]; then\n    case ${COMP_WORDS[1]} in\n";
  for (const auto& verb : verbs) {
    text += fmt::format("      {}) COMPREPLY=($(compgen -W \"{}\" -- \"$word\")) ;;\n", verb.name,
                        fmt::join(flag_names(verb), " "));
  }
  text += "    esac\n    return\n  fi\n  case ${COMP_WORDS[1]} in\n";
  for (const auto& verb : verbs) {
    if (verb.choices.empty()) continue;
    text += fmt::format("    {}) COMPREPLY=($(compgen -W \"{}\" -- \"$word\")); return ;;\n", verb.name,
                        fmt::join(verb.choices, " "));
  }
  return text + "  esac\n  COMPREPLY=($(compgen -f -- \"$word\"))\n}\ncomplete -o filenames -F _peft peft\n";
}

std::string zsh(const std::vector<VerbInfo>& verbs) {
  std::string text =
      "#compdef peft\n# zsh completion of peft: peft completion zsh > \"${fpath[1]}/_peft\"\n_peft() {\n"
      "  local -a verbs=(\n";
  for (const auto& verb : verbs) text += fmt::format("    '{}:{}'\n", verb.name, escaped(verb.description, true));
  text +=
      "  )\n  if ((CURRENT == 2)); then\n    _describe 'verb' verbs\n    return\n  fi\n"
      "  local verb=$words[2]\n  shift words\n  ((CURRENT--))\n  case $verb in\n";
  for (const auto& verb : verbs) {
    text += fmt::format("    {})\n      _arguments \\\n", verb.name);
    for (const auto& flag : verb.flags) {
      std::string value;
      if (!flag.choices.empty()) {
        value = fmt::format(":value:({})", fmt::join(flag.choices, " "));
      } else if (flag.value == ValueKind::path) {
        value = ":path:_files";
      } else if (flag.value == ValueKind::text) {
        value = ":value: ";
      }
      text += fmt::format("        '{}[{}]{}' \\\n", flag.name, escaped(flag.description, true), value);
    }
    text += verb.choices.empty() ? "        '*:path:_files'"
                                 : fmt::format("        '1:value:({})'", fmt::join(verb.choices, " "));
    text += " ;;\n";
  }
  return text + "  esac\n}\ncompdef _peft peft\n";
}

std::string fish(const std::vector<VerbInfo>& verbs) {
  std::string text = "# fish completion of peft: peft completion fish > ~/.config/fish/completions/peft.fish\n";
  for (const auto& verb : verbs) {
    text += fmt::format("complete -c peft -n __fish_use_subcommand -f -a {} -d '{}'\n", verb.name,
                        escaped(verb.description, false));
    const std::string seen = fmt::format("complete -c peft -n '__fish_seen_subcommand_from {}'", verb.name);
    if (!verb.choices.empty()) text += fmt::format("{} -f -a '{}'\n", seen, fmt::join(verb.choices, " "));
    for (const auto& flag : verb.flags) {
      text += fmt::format("{} -l {} -d '{}'", seen, flag.name.substr(2), escaped(flag.description, false));
      if (!flag.choices.empty()) {
        text += fmt::format(" -x -a '{}'", fmt::join(flag.choices, " "));
      } else if (flag.value != ValueKind::none) {
        text += flag.value == ValueKind::path ? " -r" : " -x";
      }
      text += "\n";
    }
  }
  return text;
}

std::vector<std::string> choices_of(const std::string& flag) {
  if (flag == "--to" || flag == "--from") return layout_names();
  if (flag == "--for") return engines::engine_names();
  if (flag == "--dtype") return float_dtype_names();
  if (flag == "--orientation") return {"out-in", "in-out"};
  if (flag == "--b-packing") return {"rank-major", "grouped-by-expert"};
  if (flag == "--mode") return {"best", "peft", "peft-safe", "fast"};
  if (flag == "--base-dtype" || flag == "--out-dtype") return float_dtype_names();
  if (flag == "--type") return {combine_types().begin(), combine_types().end()};
  if (flag == "--majority-sign-method") return {"total", "frequency"};
  if (flag == "--tolerance") return {"exact", "rounded"};
  if (flag == "--generation") return {"v4", "v5"};
  if (flag != "--family") return {};
  std::vector<std::string> types;
  for (const auto& row : families()) types.push_back(row.model_type);
  return types;
}

}  // namespace

void add_completion(CLI::App& app, CompletionCommand& command) {
  auto& verb = *app.add_subcommand("completion", "Print a completion script for a shell");
  verb.add_option("shell", command.shell, "bash, zsh or fish")
      ->required()
      ->type_name("SHELL")
      ->check(quiet(CLI::IsMember(kShells)));
  verb.footer(kCompletionExamples);
}

std::vector<VerbInfo> describe_verbs(const CLI::App& app) {
  std::vector<VerbInfo> verbs;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App* sub) { return !sub->get_group().empty(); })) {
    VerbInfo info{.name = verb->get_name(), .description = verb->get_description()};
    for (const CLI::Option* option : verb->get_options()) {
      if (option->nonpositional()) {
        FlagInfo flag{.name = "--" + option->get_lnames().front(), .description = option->get_description()};
        flag.choices = choices_of(flag.name);
        const bool is_path = option->get_type_name() == "DIR" || option->get_type_name() == "FILE";
        if (option->get_expected_max() > 0) flag.value = is_path ? ValueKind::path : ValueKind::text;
        info.flags.push_back(std::move(flag));
      }
    }
    if (info.name == "completion") info.choices = kShells;
    if (info.name == "engines") info.choices = engines::engine_names();
    if (info.name == "layouts" || info.name == "families") info.choices = {"--json"};  // they take no argument
    verbs.push_back(std::move(info));
  }
  return verbs;
}

int run(const CompletionCommand& command) {
  if (command.shell == "bash") write_out(bash(command.verbs));
  if (command.shell == "zsh") write_out(zsh(command.verbs));
  if (command.shell == "fish") write_out(fish(command.verbs));
  return 0;
}

}  // namespace peft::cli
