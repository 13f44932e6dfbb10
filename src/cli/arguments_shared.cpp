// Flags that several verbs have.
#include "cli/arguments_shared.h"

namespace peft::cli {

CLI::Validator quiet(CLI::Validator check) { return check.description(""); }

namespace {

// A flag that may be given once, or for `verify` twice. CLI11 gives a vector all words that follow unless told
// otherwise.
void add_per_adapter(CLI::App& verb, bool two, const std::string& flag, std::vector<std::string>& values,
                     const std::string& help, const std::string& value) {
  auto* option = verb.add_option(flag, values, help + (two ? " (twice: for A, then B)" : ""));
  option->allow_extra_args(false)->type_name(value)->group("Reading");
  if (!two) option->expected(1, 1);  // more than two are refused by VerifyCommand::require_adapters
}

}  // namespace

void add_input_flags(CLI::App& verb, InputFlags& input, bool two) {
  verb.add_option("--base", input.base, "The base model: its folder, config.json, or a module-tree file")
      ->type_name("DIR")
      ->group("Reading");
  verb.add_option("--family", input.family, "Names only: the model_type of the base, as \"peft families\" lists it")
      ->type_name("TYPE")
      ->group("Reading");
  verb.add_option("--num-experts", input.num_experts, "Experts per layer, where neither file nor base says it")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1'000'000)))
      ->group("Reading");
  verb.add_option("--families", input.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE")
      ->group("Reading");
  add_per_adapter(verb, two, "--adapter-name", input.adapter_name, "The adapter in this subfolder of the folder",
                  "NAME");
  add_per_adapter(verb, two, "--from", input.from, "The layout of the file; found out when not given", "LAYOUT");
  add_per_adapter(verb, two, "--orientation", input.orientation,
                  "Decides an ambiguous file: how an expert's update lies in the parameter", "out-in|in-out");
  add_per_adapter(verb, two, "--b-packing", input.b_packing, "Decides an ambiguous file: the order of lora_B's columns",
                  "rank-major|grouped-by-expert");
  verb.add_flag("--ignore-unused", input.ignore_unused, "Go on without tensors that belong to nothing")
      ->group("Reading");
  verb.add_flag("--allow-trailing-bytes", input.open.allow_trailing_bytes, "Accept bytes after the last tensor")
      ->group("Reading");
  verb.add_flag("--follow-symlinks", input.open.follow_symlinks,
                "Accept shards that are links out of the model's folder")
      ->group("Reading");
  verb.add_option("--max-tensors", input.open.max_tensors, "Refuse files with more tensors")
      ->type_name("N")
      ->group("Reading");
}

void add_json(CLI::App& verb, bool& json) { verb.add_flag("--json", json, "Print the result, or the error, as JSON"); }

void add_execute_flags(CLI::App& verb, ExecuteOptions& execute, bool& quiet_flag) {
  verb.add_flag("--overwrite", execute.overwrite, "Replace an output folder that exists, in one step");
  verb.add_option("--threads", execute.threads, "Threads; all cores when not given. The bytes do not depend on it")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
  verb.add_flag("!--no-sync", execute.sync, "Do not wait until the disk has the data");
  verb.add_flag("!--no-readback", execute.readback, "Do not read the written files back");
  verb.add_flag("--quiet", quiet_flag, "No progress bar");
}

}  // namespace peft::cli
