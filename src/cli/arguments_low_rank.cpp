// The flags of combine, resize and extract.
#include "cli/arguments_shared.h"
#include "peft/low_rank.h"

namespace peft::cli {
namespace {

constexpr const char* kCombineExamples = R"(Examples:
  peft combine a@0.7 b@-0.4 --type cat --out c                 exactly 0.7 a - 0.4 b; the ranks add up
  peft combine a@0.7 b@-0.4 --type svd --out c                 cut to the largest rank; the error is printed
  peft combine a b c --type ties_svd --density 0.3 --out d
  peft combine a b --type dare_linear_svd --density 0.5 --seed 1 --svd-rank 32 --out d
  peft combine v4-lora v5-lora --to peft-fused --base Qwen3-30B-A3B --out c

A weight follows the last @; 1 when there is none. Types without _svd that prune (ties, dare_*, magnitude_prune) work on
lora_A and lora_B apart, as PEFT does: only with _svd is the result what the papers describe.)";

constexpr const char* kResizeExamples = R"(Examples:
  peft resize my-lora --rank 8 --out small
  peft resize my-lora --rank 8 --dry-run                       what it would cost, matrix by matrix with --json
  peft resize my-lora --rank 8 --dtype BF16 --to peft-fused --out small

Exact up to rounding where the adapter's true rank is not above the new one; else the closest there is.)";

constexpr const char* kExtractExamples = R"(Examples:
  peft extract --base Qwen3-30B-A3B --finetuned my-merged --rank 16 --out lora
  peft extract --base v4-model --finetuned v5-model --rank 16 --to peft-per-expert --out lora
  peft extract --base M --finetuned N --rank 16 --modules-to-save norm --out lora

Matrices that did not change are left out; a rank below R is found where the difference has one.)";

void add_result_flags(CLI::App& verb, ResultFlags& flags, const std::string& to) {
  verb.add_option("--out", flags.out, "The folder to write")->type_name("DIR");
  verb.add_option(to, flags.to, "The layout to write: " + CLI::detail::join(layout_names(), ", "))->type_name("LAYOUT");
  verb.add_option("--dtype", flags.dtype,
                  "The dtype to write: " + CLI::detail::join(float_dtype_names(), ", ") + "; F32 when not given")
      ->type_name("T");
  verb.add_flag("--dry-run", flags.dry_run, "Compute and print the errors and the plan; write nothing");
  add_execute_flags(verb, flags.execute, flags.quiet);
  add_json(verb, flags.json);
}

void add_combine(CLI::App& app, CombineCommand& command) {
  auto& verb = *app.add_subcommand("combine", "Make one adapter of several, each with a weight");
  verb.add_option("adapters", command.adapters, "Adapters, each with its weight: DIR@0.7")
      ->required()
      ->type_name("DIR@WEIGHT");
  const std::vector<std::string> types(combine_types().begin(), combine_types().end());
  verb.add_option("--type", command.type, "How: " + CLI::detail::join(types, ", "))
      ->capture_default_str()
      ->type_name("TYPE")
      ->check(quiet(CLI::IsMember(types)));
  verb.add_option("--svd-rank", command.svd_rank,
                  "Types that end in svd: the new rank; the largest one of the adapters when not given")
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  verb.add_option("--density", command.density, "ties, dare, magnitude_prune: the part of the elements that is kept")
      ->type_name("D");
  verb.add_option("--majority-sign-method", command.majority_sign_method,
                  "ties: the sign of the sum, or the sign that most have")
      ->capture_default_str()
      ->type_name("total|frequency")
      ->check(quiet(CLI::IsMember({"total", "frequency"})));
  verb.add_option("--seed", command.seed, "dare: which elements are dropped")->capture_default_str()->type_name("N");
  add_result_flags(verb, command.result, "--to");
  add_input_flags(verb, command.input, false);
  verb.footer(kCombineExamples);
}

void add_resize(CLI::App& app, ResizeCommand& command) {
  auto& verb = *app.add_subcommand("resize", "Write an adapter at a lower rank, and say what that costs");
  verb.add_option("adapter", command.adapter, "The adapter")->required()->type_name("ADAPTER");
  verb.add_option("--rank", command.rank, "The new rank")
      ->required()
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  add_result_flags(verb, command.result, "--to");
  add_input_flags(verb, command.input, false);
  verb.footer(kResizeExamples);
}

void add_extract(CLI::App& app, ExtractCommand& command) {
  auto& verb = *app.add_subcommand("extract", "Recover an adapter from a model and its fine-tuned form");
  verb.add_option("--base", command.base, "The base model's folder")->required()->type_name("DIR");
  verb.add_option("--finetuned", command.finetuned, "The fine-tuned or merged model's folder")
      ->required()
      ->type_name("DIR");
  verb.add_option("--rank", command.rank, "The largest rank to keep")
      ->required()
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  verb.add_option("--modules-to-save", command.modules_to_save,
                  "Carry these modules whole where they changed: the end of a name, such as norm")
      ->type_name("MODULE");
  verb.add_flag("--ignore-unused", command.ignore_unused, "Go on where something changed that LoRA cannot hold");
  verb.add_option("--family", command.family, "The model_type, where the base does not say it")->type_name("TYPE");
  verb.add_option("--families", command.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE");
  verb.add_flag("--follow-symlinks", command.open.follow_symlinks,
                "Accept shards that are links out of the model's folder");
  add_result_flags(verb, command.result, "--to,--layout");
  verb.footer(kExtractExamples);
}

}  // namespace

void add_low_rank(CLI::App& app, LowRankCommands& commands) {
  add_combine(app, commands.combine);
  add_resize(app, commands.resize);
  add_extract(app, commands.extract);
}

}  // namespace peft::cli
