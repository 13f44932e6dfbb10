#include "cli/arguments.h"

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr const char* kExamples = R"(Examples:
  peft inspect my-lora                                         what is this file, and who can read it?
  peft doctor my-lora --for vllm --base Qwen3-30B-A3B          will it work there? if not: the command that mends it
  peft convert my-lora --for vllm --base Qwen3-30B-A3B --out ok     the form that this engine reads right
  peft targets my-lora --base Qwen3-30B-A3B                    what will LoRA sit on, with which rank?
  peft convert my-lora --to peft-fused --out my-lora-v5        transformers 4 -> 5
  peft convert my-lora-v5 --to peft-per-expert --out my-lora-v4
  peft verify my-lora my-lora-v5                               are they the same function?
  peft generate --base Qwen3-30B-A3B --adapter my-lora --prompt "Once upon" --max-new-tokens 20
  peft train --base M --r 16 --target-modules q_proj,v_proj --data train.jsonl --out my-lora
  peft merge --base M --adapter my-lora --out merged           the model with the adapter in it
  peft combine a@0.7 b@-0.4 --type svd --out c                 a weighted sum of adapters
  peft resize my-lora --rank 8 --out small                     the same adapter at a lower rank
  peft extract --base M --finetuned N --rank 16 --out lora     an adapter from two models
  peft layouts                                                 the layouts that --to and --from know

Exit codes: 0 done; 1 bad input (verify: different; doctor: not right); 2 usage (verify, doctor: also bad input); 3 I/O or space; 4 a bug; 5 interrupted.
More: peft VERB --help, docs/cli.md.)";

// All commands that a command line can fill in; one of them is taken.
struct Commands {
  InspectCommand inspect;
  DoctorCommand doctor;
  EnginesCommand engines;
  TargetsCommand targets;
  ConvertCommand convert;
  VerifyCommand verify;
  LogitsCommand logits;
  GenerateCommand generate;
  ParamsCommand params;
  TrainCommand train;
  MergeCommand merge;
  CombineCommand combine;
  ResizeCommand resize;
  ExtractCommand extract;
  LayoutsCommand layouts;
  FamiliesCommand families;
  CompletionCommand completion;
  DocsCommand docs;
};

Command chosen(const CLI::App& app, Commands& all) {
  const std::string verb = app.get_subcommands().front()->get_name();
  if (verb == "inspect") return all.inspect;
  if (verb == "doctor") return all.doctor;
  if (verb == "engines") return all.engines;
  if (verb == "targets") return all.targets;
  if (verb == "convert") return all.convert;
  if (verb == "verify") {
    all.verify.require_adapters();
    return all.verify;
  }
  if (verb == "logits") return all.logits;
  if (verb == "generate") return all.generate;
  if (verb == "params") return all.params;
  if (verb == "train") return all.train;
  if (verb == "merge") return all.merge;
  if (verb == "combine") return all.combine;
  if (verb == "resize") return all.resize;
  if (verb == "extract") return all.extract;
  if (verb == "layouts") return all.layouts;
  if (verb == "families") return all.families;
  if (verb == "docs") return all.docs;
  all.completion.verbs = describe_verbs(app);
  return all.completion;
}

int run_text(const TextCommand& command) {
  write_out(command.text);
  return 0;
}

int run_command(const Command& command) {
  return std::visit(
      [](const auto& verb) {
        if constexpr (std::is_same_v<std::decay_t<decltype(verb)>, TextCommand>) {
          return run_text(verb);
        } else {
          return run(verb);
        }
      },
      command);
}

// What a plan frees is used again by its next step, instead of going back to the system: the first touch of a page
// costs more than what is done with it.
void keep_freed_memory() {
#ifdef M_MMAP_THRESHOLD
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_TOP_PAD, 1 << 20);
#endif
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
  add_doctor(app, all.doctor);
  add_targets(app, all.targets);
  add_convert(app, all.convert);
  add_verify(app, all.verify);
  add_logits(app, all.logits);
  add_generate(app, all.generate);
  add_params(app, all.params);
  add_train(app, all.train);
  add_merge(app, all.merge);
  add_combine(app, all.combine);
  add_resize(app, all.resize);
  add_extract(app, all.extract);
  add_layouts(app, all.layouts);
  add_engines(app, all.engines);
  add_families(app, all.families);
  add_completion(app, all.completion);
  add_docs(app, all.docs);
  for (auto* flags : {&all.logits.model, &all.generate.model, &all.params.model, &all.train.model}) {
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

int run_program(std::vector<std::string> arguments) {
  keep_freed_memory();
  ignore_write_signals();
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  const std::string verb = arguments.empty() ? std::string() : arguments.front();
  const bool one_is_an_answer = verb == "verify" || verb == "doctor";
  try {
    try {
      const int code = run_command(parse_arguments(std::move(arguments)));
      finish_output();
      return code;
    } catch (...) {
      return report(current_error(), json, one_is_an_answer);
    }
  } catch (...) {  // the error itself could not be printed
    return info(ErrorCode::IO_WRITE).exit_code;
  }
}

}  // namespace peft::cli
