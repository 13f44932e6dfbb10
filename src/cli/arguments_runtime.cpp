// The flags of logits, generate and params.
#include "cli/arguments_shared.h"
#include "cli/input_flags.h"

namespace peft::cli {
namespace {

constexpr const char* kLogitsExamples = R"(Examples:
  peft logits --base Qwen3-30B-A3B --ids 1,2,3                        the likeliest next tokens
  peft logits --base Qwen3-30B-A3B --adapter my-lora --ids "1,2,3;4,5,6" --out logits.safetensors
  peft logits --base M --adapter my-lora --ids "1,2,3;0,5,6" --mask "1,1,1;0,1,1" --json

Positions are 0, 1, ... whatever the mask says, as in a plain forward pass of transformers.)";

constexpr const char* kGenerateExamples = R"(Examples:
  peft generate --base Qwen3-30B-A3B --adapter my-lora --prompt "The capital of France" --max-new-tokens 20
  peft generate --base M --ids "5,6,7" --max-new-tokens 20            token ids in, token ids out
  peft generate --base M --prompt "Once" --max-new-tokens 50 --temperature 0.8 --top-p 0.95 --seed 7

--prompt takes the text as it is, without a chat template, and needs a python3 with `tokenizers` (PEFT_PYTHON names another).)";

constexpr const char* kParamsExamples = R"(Examples:
  peft params --base Qwen3-30B-A3B                        sizes, from config.json alone
  peft params --base Qwen3-30B-A3B --adapter my-lora      as PEFT's print_trainable_parameters(), and a table
  peft params --base config.json --adapter adapter_config.json

No weight is read, so it answers at once for a model of any size.)";

void add_model_flags(CLI::App& verb, RuntimeFlags& flags, const std::string& base, const std::string& adapter) {
  verb.add_option("--base", flags.base, base)->required()->type_name("DIR");
  verb.add_option("--adapter", flags.adapters, adapter)->allow_extra_args(false)->type_name("DIR");
  add_json(verb, flags.json);
}

void add_run_flags(CLI::App& verb, RuntimeFlags& flags) {
  add_model_flags(verb, flags, "The base model's folder, as transformers 4 or 5 writes it",
                  "A LoRA adapter, in any layout; given several times, their updates add up");
  verb.add_option("--device", flags.device, "Where to run: cpu, cuda, cuda:1")->capture_default_str()->type_name("D");
  verb.add_option(
          "--dtype", flags.dtype,
          "Run in this dtype: " + CLI::detail::join(float_dtype_names(), ", ") + "; the base's own when not given")
      ->type_name("T");
  auto* residual = verb.add_flag("--base-is-residual", flags.base_is_residual,
                                 "The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original");
  verb.add_flag("--change-base", flags.change_base,
                "Take the start of PiSSA or OLoRA out of the base, as PEFT does when it loads")
      ->excludes(residual);
  verb.add_option("--threads", flags.threads, "Threads; as many as libtorch takes when not given")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
}

CLI::Option* add_ids(CLI::App& verb, std::string& ids, std::string& mask) {
  auto* option = verb.add_option("--ids", ids, "Token ids: numbers of a row by commas, rows by semicolons");
  option->type_name("IDS");
  verb.add_option("--mask", mask, "1 for each token, 0 for padding, in the shape of --ids")
      ->needs(option)
      ->type_name("MASK");
  return option;
}

void add_logits(CLI::App& app, LogitsCommand& command) {
  auto& verb = *app.add_subcommand("logits", "Run a model, with or without LoRA, and write its logits");
  add_run_flags(verb, command.model);
  add_ids(verb, command.ids, command.mask)->required();
  verb.add_option("--out", command.out, "A safetensors file: `logits` F32 [rows, tokens, vocabulary]")
      ->type_name("FILE");
  verb.add_flag("--overwrite", command.overwrite, "Replace the output file if it exists");
  verb.footer(kLogitsExamples);
}

void add_generate(CLI::App& app, GenerateCommand& command) {
  auto& verb = *app.add_subcommand("generate", "Continue a text or token ids");
  add_run_flags(verb, command.model);
  auto* ids = add_ids(verb, command.ids, command.mask);
  verb.add_option("--prompt", command.prompt, "The text to continue, by the base's tokenizer.json")
      ->excludes(ids)
      ->type_name("TEXT");
  verb.add_option("--max-new-tokens", command.max_new_tokens, "How many tokens at most")
      ->required()
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1'000'000'000)));
  verb.add_option("--temperature", command.temperature, "Draw tokens; 0 takes the likeliest")
      ->capture_default_str()
      ->type_name("X")
      ->check(quiet(CLI::Range(0.0, 1000.0)));
  verb.add_option("--top-k", command.top_k, "Draw from the K likeliest; 0: from all")
      ->capture_default_str()
      ->type_name("K")
      ->check(quiet(CLI::Range(0, 1'000'000'000)));
  verb.add_option("--top-p", command.top_p, "Draw from the likeliest that have this probability together")
      ->capture_default_str()
      ->type_name("P")
      ->check(quiet(CLI::Range(0.0, 1.0)));
  verb.add_option("--seed", command.seed, "Of drawing: the same seed, the same text")
      ->capture_default_str()
      ->type_name("S");
  verb.add_flag("--ignore-eos", command.ignore_eos, "Go on after the end-of-text token");
  verb.callback([&command] {
    if (command.ids.empty() && !command.prompt) throw CLI::RequiredError("--ids or --prompt");
  });
  verb.footer(kGenerateExamples);
}

void add_params(CLI::App& app, ParamsCommand& command) {
  auto& verb = *app.add_subcommand("params", "Count the parameters that LoRA trains, and all");
  add_model_flags(verb, command.model, "The base model: its folder, or its config.json",
                  "An adapter, or an adapter_config.json; given several times, the first is the active one");
  verb.footer(kParamsExamples);
}

}  // namespace

void add_runtime(CLI::App& app, RuntimeCommands& commands) {
  add_logits(app, commands.logits);
  add_generate(app, commands.generate);
  add_params(app, commands.params);
}

}  // namespace peft::cli
