// The flags of verify.
#include "cli/arguments_shared.h"

namespace peft::cli {
namespace {

constexpr const char* kVerifyExamples = R"(Examples:
  peft verify my-lora my-lora-v5
  peft verify a b --tolerance exact --json
  peft verify a b --from peft-fused-0.18 --from auto           --from for A only
  peft verify --merged out --base Qwen3-30B-A3B my-lora        is it the base with the adapter merged, tensor by tensor?
  peft verify --merged out --base M a@0.7 b@-0.4

Exit codes: 0 same function (or merged as it should be), 1 different, 2 an input is bad.)";

}  // namespace

void add_verify(CLI::App& app, VerifyCommand& command) {
  auto& verb = *app.add_subcommand(
      "verify", "Say whether two adapters are the same function, or whether a model has them merged");
  verb.add_option("adapters", command.adapters, "Two adapters; with --merged those that the model should hold")
      ->type_name("A B");
  verb.add_option("--merged", command.merged,
                  "Check this model instead: the base with the adapters (DIR@WEIGHT) merged, whoever did it")
      ->type_name("DIR");
  verb.add_option("--tolerance", command.tolerance, "What counts as the same: equal numbers, or equal up to rounding")
      ->capture_default_str()
      ->type_name("exact|rounded")
      ->check(quiet(CLI::IsMember({"exact", "rounded"})));
  verb.add_flag("--base-is-residual", command.base_is_residual,
                "With --merged: the base is the one that PiSSA, OLoRA, ... left behind");
  verb.add_option("--threads", command.threads, "Threads; all cores when not given")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
  add_json(verb, command.json);
  add_input_flags(verb, command.input, true);
  verb.footer(kVerifyExamples);
}

}  // namespace peft::cli
