#include "cli/verbs/targets.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/text.h"
#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "peft/adapter.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

constexpr const char* kTargetsExamples = R"(Examples:
  peft targets my-lora --base Qwen3-30B-A3B
  peft targets adapter_config.json --base Qwen3-30B-A3B/config.json --generation v4
  peft targets my-lora --base Qwen3-30B-A3B --as-of 0.18.1 --json)";

std::optional<AdapterConfig::Version> parse_version(const std::string& text) {
  if (text.empty()) return std::nullopt;
  AdapterConfig::Version version;
  int used = 0;
  const int fields = std::sscanf(text.c_str(), "%4d.%4d.%4d%n", &version.major, &version.minor, &version.patch, &used);
  if (fields != 3 || static_cast<std::size_t>(used) != text.size()) {
    throw Error(ErrorCode::USAGE, {.problem = "--as-of is not a version", .expected = "like 0.18.1", .got = text});
  }
  return version;
}

// Whose names a config is meant for, when nobody says it: what the base shows, else what the config's writer ran on.
Generation likely_generation(const Model& model, const AdapterConfig& config) {
  if (model.base_is_v4_only || !model.v5) return Generation::v4;
  if (model.base_is_v5_only || !model.v4) return Generation::v5;
  if (config.target_parameters && !config.target_parameters->empty()) return Generation::v5;
  return config.likely_version().first < AdapterConfig::Version{0, 19, 0} ? Generation::v4 : Generation::v5;
}

Generation choose_generation(const Model& model, const AdapterConfig& config, const TargetsCommand& command) {
  Generation generation = likely_generation(model, config);
  if (command.generation == "v4") generation = Generation::v4;
  if (command.generation == "v5") generation = Generation::v5;
  if (!model.tree(generation)) {
    at(command.base)
        .fail(ErrorCode::MD_NEEDED,
              {.problem = fmt::format("the modules of this model in transformers {} are not known",
                                      generation == Generation::v4 ? "4" : "5"),
               .got = model.model_type,
               .hint = "--base takes a model folder, its config.json, or a module-tree file"});
  }
  return generation;
}

Json to_json(const ResolvedTargets& resolved, Generation generation) {
  Json targets = Json::array();
  for (const auto& target : resolved.targets) {
    targets.push_back({{"name", target.name},
                       {"kind", target.parameter ? "parameter" : "module"},
                       {"rank", target.rank},
                       {"alpha", number(target.alpha)},
                       {"scale", number(target.scaling)},
                       {"shape", target.shape},
                       {"lora_a", target.a},
                       {"lora_b", target.b},
                       {"key", target.key},
                       {"pattern", target.pattern}});
  }
  return {{"generation", generation == Generation::v4 ? "v4" : "v5"},
          {"targets", targets},
          {"modules_to_save", sorted(resolved.modules_to_save)},
          {"excluded", sorted(resolved.excluded)},
          {"warnings", resolved.warnings},
          {"config_after", pythonic::parse_json(resolved.config_after.dump(), "config_after")}};
}

// Without a checkpoint the sizes of dense modules are not known.
std::string shape_or_unknown(std::span<const std::int64_t> shape) { return shape.empty() ? "?" : shape_text(shape); }

void print(const ResolvedTargets& resolved, Generation generation) {
  Table table({{"target"},
               {"kind"},
               {"weight"},
               {"rank", Align::right},
               {"alpha", Align::right},
               {"scale", Align::right},
               {"lora_A"},
               {"lora_B"},
               {"key on disk"}});
  for (const auto& target : resolved.targets) {
    table.add({target.name, target.parameter ? "parameter" : "module", shape_or_unknown(target.shape),
               std::to_string(target.rank), short_number(target.alpha), short_number(target.scaling),
               shape_or_unknown(target.a), shape_or_unknown(target.b),
               target.key == target.name ? "same" : target.key});
  }
  write_out(table.render());
  std::size_t parameters = 0;
  for (const auto& target : resolved.targets) parameters += target.parameter ? 1 : 0;
  write_out(fmt::format("transformers {} names: {} modules, {} parameters", generation == Generation::v4 ? 4 : 5,
                        resolved.targets.size() - parameters, parameters));
  if (!resolved.modules_to_save.empty())
    write_out(fmt::format(", {} modules saved whole", resolved.modules_to_save.size()));
  if (!resolved.excluded.empty()) write_out(fmt::format(", {} excluded", resolved.excluded.size()));
  write_out("\n");
}

}  // namespace

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

namespace {

std::pair<ResolvedTargets, Generation> resolve(const TargetsCommand& command) {
  const auto as_of = parse_version(command.as_of);
  const AdapterConfig config = AdapterConfig::read(resolve_path(command.path));
  require_usable(config, Verb::targets);
  const Model model = describe({.base = resolve_path(command.base), .families_file = command.families_file});
  const Generation generation = choose_generation(model, config, command);
  return {resolve_targets(config, *model.tree(generation), model, generation, as_of), generation};
}

}  // namespace

Json result(const TargetsCommand& command) {
  const auto [resolved, generation] = resolve(command);
  return to_json(resolved, generation);
}

int run(const TargetsCommand& command) {
  const auto [resolved, generation] = resolve(command);
  if (command.json) {
    print_json(to_json(resolved, generation));
    return 0;
  }
  print(resolved, generation);
  write_warnings(resolved.warnings);
  return 0;
}

}  // namespace peft::cli
