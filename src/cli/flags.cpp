#include "cli/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>

#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr std::array kFloatDtypes = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f64};

[[noreturn]] void bad_value(const std::string& flag, const std::string& value,
                            const std::vector<std::string>& allowed) {
  std::string list;
  for (const auto& name : allowed) list += (list.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::USAGE,
              {.problem = "there is no such value for " + flag, .expected = "one of " + list, .got = value});
}

// The value for one of the adapters; "" when absent or "auto".
std::string pick(const std::vector<std::string>& values, std::size_t which) {
  if (values.empty()) return {};
  const std::string& value = values[std::min(which, values.size() - 1)];
  return value == "auto" ? std::string() : value;
}

// A flag that may be given once, or for `verify` twice. CLI11 gives a vector all words that follow unless told
// otherwise.
void add_per_adapter(CLI::App& verb, bool two, const std::string& flag, std::vector<std::string>& values,
                     const std::string& help, const std::string& value) {
  auto* option = verb.add_option(flag, values, help + (two ? " (twice: for A, then B)" : ""));
  option->allow_extra_args(false)->type_name(value)->group("Reading");
  if (!two) option->expected(1, 1);  // more than two are refused by VerifyCommand::require_adapters
}

}  // namespace

std::vector<std::string> layout_names() {
  std::vector<std::string> names;
  for (const auto& row : layouts()) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> float_dtype_names() {
  std::vector<std::string> names;
  for (const auto dtype : kFloatDtypes) names.emplace_back(info(dtype).name);
  return names;
}

Layout parse_layout_flag(const std::string& flag, const std::string& value) {
  if (const auto layout = parse_layout(value)) return *layout;
  bad_value(flag, value, layout_names());
}

Dtype parse_dtype_flag(const std::string& flag, const std::string& value) {
  const auto dtype = parse_dtype(value);
  if (dtype && std::find(kFloatDtypes.begin(), kFloatDtypes.end(), *dtype) != kFloatDtypes.end()) return *dtype;
  bad_value(flag, value, float_dtype_names());
}

std::optional<Layout> parse_optional_layout(const std::string& flag, const std::string& value) {
  return value.empty() ? std::nullopt : std::optional(parse_layout_flag(flag, value));
}

std::optional<Dtype> parse_optional_dtype(const std::string& flag, const std::string& value) {
  return value.empty() ? std::nullopt : std::optional(parse_dtype_flag(flag, value));
}

void require_choice(const std::string& flag, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) bad_value(flag, value, allowed);
}

void require_out(const std::string& out, bool dry_run) {
  if (!out.empty() || dry_run) return;
  at({}).fail(ErrorCode::USAGE, {.problem = "--out is needed", .hint = "or --dry-run, to see what would be written"});
}

InputOptions InputFlags::options(std::size_t which) const {
  InputOptions options;
  options.base = base;
  options.family = family;
  options.families_file = families_file;
  options.num_experts = num_experts;
  options.adapter_name = pick(adapter_name, which);
  options.open = open;
  options.read.ignore_unused = ignore_unused;
  options.read.layout = parse_optional_layout("--from", pick(from, which));
  options.read.orientation = pick(orientation, which);
  if (const auto& value = options.read.orientation; !value.empty() && value != "out-in" && value != "in-out") {
    bad_value("--orientation", value, {"out-in", "in-out"});
  }
  const auto packing = pick(b_packing, which);
  if (packing == "rank-major") {
    options.read.b_packing = BPacking::rank_major;
  } else if (packing == "grouped-by-expert") {
    options.read.b_packing = BPacking::grouped_by_expert;
  } else if (!packing.empty()) {
    bad_value("--b-packing", packing, {"rank-major", "grouped-by-expert"});
  }
  return options;
}

CLI::Validator quiet(CLI::Validator check) { return check.description(""); }

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
