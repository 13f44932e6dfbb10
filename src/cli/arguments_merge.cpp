// The flags of merge.
#include "cli/arguments_shared.h"
#include "cli/merge.h"

namespace peft::cli {
namespace {

constexpr const char* kMergeExamples = R"(Examples:
  peft merge --base Qwen3-30B-A3B --adapter my-lora --out merged
  peft merge --base M --adapter a@0.7 --adapter b@-0.4 --out merged     several, each with a weight
  peft merge --base M --adapter my-lora --dry-run                      what would change, and what it costs
  peft merge --base gpt-oss-20b --adapter my-lora --out merged         MXFP4 is written as bf16, about four times its bytes
  peft merge --base M --adapter my-lora --out merged --report merged.html   a page for whoever gets the model
  peft merge --base M --adapter my-lora --out merged --resume          go on where a run was stopped
  peft merge --base M --adapter my-lora --out merged --part 3/8        one of eight machines; --finish when all are done
  peft merge --base M --adapter my-lora --mode peft --out merged       the bits of PEFT's merge_and_unload()

The output is a whole model in the base's own names; it appears complete and checked, or not at all.)";

void add_rounding(CLI::App& verb, MergeCommand& command) {
  verb.add_option(
          "--mode", command.mode,
          "How it rounds: once (best), as PEFT's merge_and_unload (peft) or with safe_merge (peft-safe), or the "
          "quickest way, its error printed (fast)")
      ->capture_default_str()
      ->type_name("best|peft|peft-safe|fast")
      ->check(quiet(CLI::IsMember({"best", "peft", "peft-safe", "fast"})));
  verb.add_option("--base-dtype", command.base_dtype, "Cast the base first, as loading it with this dtype does")
      ->type_name("T");
  verb.add_option("--out-dtype", command.out_dtype, "Round the result to this; the base's own when not given")
      ->type_name("T");
  verb.add_flag("--keep-quantized", command.keep_quantized,
                "Leave quantised tensors as they are where no adapter changes them");
}

void add_resuming(CLI::App& verb, MergeCommand& command) {
  verb.add_flag("--resume", command.resume, "Go on where a run was stopped: its finished files are checked and used")
      ->group("Long runs");
  verb.add_flag("--trust-journal", command.execute.trust_journal,
                "Compare sizes and headers of finished files, not their contents")
      ->group("Long runs");
  auto* part = verb.add_option("--part", command.part,
                               "Write only part I of N of the files; the parts may run at once, "
                               "on several machines")
                   ->type_name("I/N")
                   ->group("Long runs");
  verb.add_flag("--finish", command.execute.finish, "Check that all parts are there, and make the output of them")
      ->excludes(part)
      ->group("Long runs");
}

void add_output(CLI::App& verb, MergeCommand& command) {
  verb.add_option("--max-shard-size", command.max_shard_size,
                  "New shards of at most this, such as 5GB; the base's own shards when not given")
      ->type_name("SIZE");
  verb.add_option("--report", command.report, "Write a page (HTML, complete in itself) that says what changed where")
      ->type_name("FILE");
  verb.add_flag("--dry-run", command.dry_run, "Print the plan; write nothing");
  add_execute_flags(verb, command.execute, command.quiet);
  add_json(verb, command.json);
}

}  // namespace

void add_merge(CLI::App& app, MergeCommand& command) {
  auto& verb = *app.add_subcommand("merge", "Add adapters to a model on disk, and write the model");
  auto* adapter =
      verb.add_option("--adapter", command.adapters, "An adapter, with its weight; may be given several times");
  adapter->required()->type_name("DIR@WEIGHT")->expected(1)->take_all()->allow_extra_args(false);
  verb.add_option("--out", command.out, "The folder to write")->type_name("DIR");
  add_rounding(verb, command);
  verb.add_flag("--base-is-residual", command.base_is_residual,
                "The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original model");
  verb.add_flag("--allow-repeat", command.allow_repeat, "Add an adapter that the base already holds");
  add_output(verb, command);
  add_resuming(verb, command);
  add_input_flags(verb, command.input, false);
  verb.get_option("--base")->required()->description("The base model's folder")->group("Options");
  verb.footer(kMergeExamples);
}

}  // namespace peft::cli
