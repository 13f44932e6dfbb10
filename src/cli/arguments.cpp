// This file and arguments_*.cpp include CLI11, which takes seconds to compile.
#include "cli/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/arguments_shared.h"
#include "cli/version.h"
#include "peft/error.h"
#include "peft/low_rank.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

constexpr const char* kExamples = R"(Examples:
  peft inspect my-lora                                         what is this file, and who can read it?
  peft targets my-lora --base Qwen3-30B-A3B                    what will LoRA sit on, with which rank?
  peft convert my-lora --to peft-fused --out my-lora-v5        transformers 4 -> 5
  peft convert my-lora-v5 --to peft-per-expert --out my-lora-v4
  peft verify my-lora my-lora-v5                               are they the same function?
  peft generate --base Qwen3-30B-A3B --adapter my-lora --prompt "Once upon" --max-new-tokens 20
  peft merge --base M --adapter my-lora --out merged           the model with the adapter in it
  peft combine a@0.7 b@-0.4 --type svd --out c                 a weighted sum of adapters
  peft resize my-lora --rank 8 --out small                     the same adapter at a lower rank
  peft extract --base M --finetuned N --rank 16 --out lora     an adapter from two models
  peft layouts                                                 the layouts that --to and --from know

Exit codes: 0 done; 1 bad input (verify: different); 2 usage (verify: also bad input); 3 I/O or space; 4 a bug; 5 interrupted.
More: peft VERB --help, docs/cli.md.)";

constexpr const char* kInspectExamples = R"(Examples:
  peft inspect my-lora
  peft inspect my-lora --base Qwen3-30B-A3B      checks every name and shape against the model
  peft inspect org/my-lora --json                from the local Hugging Face cache

Exit code 1 when the file cannot be decoded.)";

constexpr const char* kTargetsExamples = R"(Examples:
  peft targets my-lora --base Qwen3-30B-A3B
  peft targets adapter_config.json --base Qwen3-30B-A3B/config.json --generation v4
  peft targets my-lora --base Qwen3-30B-A3B --as-of 0.18.1 --json)";

constexpr const char* kConvertExamples = R"(Examples:
  peft convert my-lora --to peft-fused --out my-lora-v5
  peft convert my-lora --to peft-fused --out my-lora-v5 --base Qwen3-30B-A3B
  peft convert my-lora --to peft-fused --dry-run               what would be written
  peft convert runs/a runs/b --to peft-per-expert --out v4     v4/a and v4/b, and a table
  peft convert my-lora --to peft-fused --config-only --base Qwen3-30B-A3B
  peft convert old --from peft-fused-0.18 --orientation in-out --to peft-fused --out new

DIR appears complete and checked, or not at all; the input is never modified.)";

constexpr const char* kCompletionExamples = R"(Examples:
  source <(peft completion bash)
  peft completion zsh > "${fpath[1]}/_peft"
  peft completion fish > ~/.config/fish/completions/peft.fish)";

const std::vector<std::string> kShells = {"bash", "zsh", "fish"};
const std::vector<std::string> kPages = {"errors", "layouts", "families", "config_fields"};

// All commands that a command line can fill in; one of them is taken.
struct Commands {
  InspectCommand inspect;
  TargetsCommand targets;
  ConvertCommand convert;
  VerifyCommand verify;
  RuntimeCommands runtime;
  LowRankCommands low_rank;
  MergeCommand merge;
  LayoutsCommand layouts;
  FamiliesCommand families;
  CompletionCommand completion;
  DocsCommand docs;
};

void add_inspect(CLI::App& app, InspectCommand& command) {
  auto& verb =
      *app.add_subcommand("inspect", "Say what an adapter is: layout, producer, ranks, and who reads it right");
  verb.add_option("path", command.path, "The adapter: a folder, or org/name in the local Hugging Face cache")
      ->required()
      ->type_name("PATH");
  add_json(verb, command.json);
  add_input_flags(verb, command.input, false);
  verb.footer(kInspectExamples);
}

void add_targets(CLI::App& app, TargetsCommand& command) {
  auto& verb = *app.add_subcommand("targets", "List what a config puts LoRA on: modules, parameters, ranks, shapes");
  verb.add_option("path", command.path, "An adapter folder, or an adapter_config.json")
      ->required()
      ->type_name("ADAPTER|CONFIG");
  verb.add_option("--base", command.base, "The base model: its folder, config.json, or a module-tree file")
      ->required()
      ->type_name("DIR");
  verb.add_option("--generation", command.generation,
                  "Module names of transformers 4 or 5; what base and config suggest when not given")
      ->type_name("v4|v5")
      ->check(quiet(CLI::IsMember({"v4", "v5"})));
  verb.add_option("--as-of", command.as_of,
                  "By the rules of this PEFT version, such as 0.18.1; the newest known when not given")
      ->type_name("VERSION");
  verb.add_option("--families", command.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE");
  add_json(verb, command.json);
  verb.footer(kTargetsExamples);
}

void add_convert(CLI::App& app, ConvertCommand& command) {
  auto& verb = *app.add_subcommand("convert", "Write adapters in another layout");
  verb.add_option("adapters", command.paths, "Adapter folders (with --config-only: a config or a folder)")
      ->required()
      ->type_name("ADAPTER");
  verb.add_option("--to", command.to, "The layout to write: " + CLI::detail::join(layout_names(), ", "))
      ->required()
      ->type_name("LAYOUT");
  verb.add_option("--out", command.out, "The folder to write; of several adapters, each gets DIR/NAME")
      ->type_name("DIR");
  verb.add_option("--dtype", command.dtype, "Cast the factors: " + CLI::detail::join(float_dtype_names(), ", "))
      ->type_name("T");
  verb.add_flag("--block-diagonal", command.block_diagonal,
                "Keep gate and up apart (rank 2r) even where they share lora_A");
  verb.add_flag("--dry-run", command.dry_run, "Print the plan; write nothing");
  verb.add_flag("--config-only", command.config_only,
                "Convert adapter_config.json alone: print a diff, write it to --out");
  add_execute_flags(verb, command.execute, command.quiet);
  add_json(verb, command.json);
  add_input_flags(verb, command.input, false);
  verb.footer(kConvertExamples);
}

void add_tables(CLI::App& app, Commands& all) {
  auto& layouts = *app.add_subcommand("layouts", "List the layouts: who writes and reads them, keys, shapes");
  add_json(layouts, all.layouts.json);
  auto& families =
      *app.add_subcommand("families", "List the model families: what their experts are called and how they lie");
  families.add_option("--families", all.families.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE");
  add_json(families, all.families.json);
  auto& completion = *app.add_subcommand("completion", "Print a completion script for a shell");
  completion.add_option("shell", all.completion.shell, "bash, zsh or fish")
      ->required()
      ->type_name("SHELL")
      ->check(quiet(CLI::IsMember(kShells)));
  completion.footer(kCompletionExamples);
  auto& docs = *app.add_subcommand("docs", "Print a page of docs/ that is made from the program's tables");
  docs.add_option("page", all.docs.page, "errors, layouts, families or config_fields")
      ->required()
      ->check(quiet(CLI::IsMember(kPages)));
  docs.group("");  // for `make docs`, not for users
}

std::vector<std::string> choices_of(const std::string& flag) {
  if (flag == "--to" || flag == "--from") return layout_names();
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

// The flags of all verbs that users see.
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
    if (info.name == "layouts" || info.name == "families") info.choices = {"--json"};  // they take no argument
    verbs.push_back(std::move(info));
  }
  return verbs;
}

Command chosen(const CLI::App& app, Commands& all) {
  const std::string verb = app.get_subcommands().front()->get_name();
  if (verb == "inspect") return all.inspect;
  if (verb == "targets") return all.targets;
  if (verb == "convert") return all.convert;
  if (verb == "verify") {
    all.verify.require_adapters();
    return all.verify;
  }
  if (verb == "logits") return all.runtime.logits;
  if (verb == "generate") return all.runtime.generate;
  if (verb == "params") return all.runtime.params;
  if (verb == "merge") return all.merge;
  if (verb == "combine") return all.low_rank.combine;
  if (verb == "resize") return all.low_rank.resize;
  if (verb == "extract") return all.low_rank.extract;
  if (verb == "layouts") return all.layouts;
  if (verb == "families") return all.families;
  if (verb == "docs") return all.docs;
  all.completion.verbs = describe_verbs(app);
  return all.completion;
}

std::string help_of(const CLI::App& app) {
  const auto verbs = app.get_subcommands();
  return verbs.empty() ? app.help() : verbs.front()->help("peft");
}

}  // namespace

Command parse_arguments(std::vector<std::string> arguments) {
  CLI::App app{"LoRA adapters of Mixture-of-Experts models: inspect, convert, verify, merge, combine.", "peft"};
  Commands all;
  app.set_version_flag("--version", std::string("peft ") + kVersion);
  app.require_subcommand(1);
  app.footer(kExamples);
  app.get_formatter()->column_width(30);
  add_inspect(app, all.inspect);
  add_targets(app, all.targets);
  add_convert(app, all.convert);
  add_verify(app, all.verify);
  add_runtime(app, all.runtime);
  add_merge(app, all.merge);
  add_low_rank(app, all.low_rank);
  add_tables(app, all);
  for (auto* flags : {&all.runtime.logits.model, &all.runtime.generate.model, &all.runtime.params.model}) {
    flags->command_line = arguments;
  }
  if (arguments.empty()) return TextCommand{app.help()};
  // CLI11 would only say that a verb is missing.
  const std::string& verb = arguments.front();
  const auto is_verb = [&](const CLI::App* known) { return known->get_name() == verb; };
  if (!verb.starts_with("-") && app.get_subcommands(is_verb).empty()) {
    throw Error(ErrorCode::USAGE, {.problem = "there is no verb " + verb, .hint = "peft --help"});
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app.parse(arguments);
  } catch (const CLI::CallForVersion& version) {
    return TextCommand{std::string(version.what()) + "\n"};
  } catch (const CLI::CallForHelp&) {
    return TextCommand{help_of(app)};
  } catch (const CLI::ParseError& error) {
    const auto verbs = app.get_subcommands();
    throw Error(
        ErrorCode::USAGE,
        {.problem = error.what(), .hint = "peft " + (verbs.empty() ? "" : verbs.front()->get_name() + " ") + "--help"});
  }
  return chosen(app, all);
}

}  // namespace peft::cli
