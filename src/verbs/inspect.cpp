#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "layout/encode/write_config.h"
#include "layout/keys.h"
#include "peft/error.h"
#include "peft/targets.h"
#include "peft/verbs.h"
#include "verbs/consumers.h"
#include "verbs/inspect_rows.h"
#include "verbs/inspect_values.h"

namespace peft {
namespace {

std::string producer(const AdapterConfig& config) {
  const auto [version, evidence] = config.likely_version();
  std::string text = fmt::format("PEFT {}.{}.{} ({})", version.major, version.minor, version.patch, evidence);
  if (!config.lora_B_layout.empty())
    text += ", marked by Unsloth";
  else if (config.base_model_name_or_path.value_or("").starts_with("unsloth/"))
    text += ", base model from Unsloth";
  return text;
}

std::string dtypes_of(const TensorFile& file) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : file.tensors()) names.insert(tensor.dtype_name);
  std::string text;
  for (const auto name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

// Fields whose values some verbs refuse.
void list_refusals(const AdapterConfig& config, InspectReport& report) {
  using enum Verb;
  constexpr config::Verbs kOfAdapters{targets, convert, verify, merge, combine, resize, run};
  for (const auto& [row, value] : config::telling_keys(config)) {
    const config::Verbs refused = row->refused & kOfAdapters;
    if (refused.empty()) continue;
    report.anomalies.push_back(
        fmt::format("{} = {}: {}; refused by {}", row->key, value, row->why, config::names(refused)));
  }
}

bool is_refused_by(Verb verb, const AdapterConfig& config) {
  const auto keys = config::telling_keys(config);
  return std::ranges::any_of(keys, [verb](const auto& key) { return key.row->refused.contains(verb); });
}

// Patterns of the config that decide nothing, and modules the config targets that the file has no tensors for.
void check_config(const Input& input, InspectReport& report) {
  const AdapterConfig& config = input.adapter.config;
  if (is_refused_by(Verb::targets, config)) return;  // what it targets cannot be said
  const bool fused = input.reading.layout != Layout::peft_per_expert;
  const Generation g = input.reading.has_experts && !fused ? Generation::v4 : Generation::v5;
  const auto& tree = input.model.tree(g) ? input.model.tree(g)
                                         : input.model.tree(g == Generation::v4 ? Generation::v5 : Generation::v4);
  if (!tree) return;
  ResolvedTargets resolved;
  try {
    resolved = resolve_targets(config, *tree, input.model, g, config.likely_version().first);
  } catch (const Error& error) {
    report.anomalies.push_back("the config alone would not load: " + error.detail().problem);
    return;
  }
  report.warnings.insert(report.warnings.end(), resolved.warnings.begin(), resolved.warnings.end());
  std::set<std::string> present;
  for (const TensorInfo& tensor : input.adapter.weights->tensors())
    present.insert(std::string(layout::parse_key(tensor.name).module));
  std::size_t random = 0;
  std::string example;
  for (const Target& target : resolved.targets) {
    const std::string module = target.parameter ? target.name.substr(0, target.name.rfind('.')) : target.name;
    if (present.count(module) != 0) continue;
    ++random;
    if (example.empty()) example = target.name;
  }
  if (random != 0) {
    report.anomalies.push_back(fmt::format(
        "the config targets {} modules or parameters that the file has no tensors for ({}): PEFT gives them {}", random,
        example, config.init_lora_weights == "false" ? "random values that change the model" : "untrained values"));
  }
}

void fill_decoded(const Input& input, InspectReport& report) {
  const Reading& reading = input.reading;
  const bool fused = reading.has_experts && reading.layout != Layout::peft_per_expert;
  report.layout =
      reading.has_experts ? std::string(info(reading.layout).name) : "dense (no experts; the same in every layout)";
  report.evidence = reading.evidence;
  report.anomalies = reading.anomalies;
  report.warnings = reading.factors.warnings;
  for (const auto& unused : reading.unused) report.anomalies.push_back("belongs to nothing: " + unused);
  std::set<std::int64_t> layers;
  std::int64_t highest = -1;
  std::set<std::string> blocks;
  for (const Factor& factor : reading.factors.factors) {
    if (factor.site.expert >= 0) blocks.insert(factor.site.module);
    highest = std::max(highest, factor.site.expert);
  }
  report.num_layers = static_cast<std::int64_t>(blocks.size());
  report.num_experts = highest + 1;
  for (const ExpertCount& count : reading.factors.expert_counts)
    report.num_experts = std::max(report.num_experts, count.count);
  for (const Experts& experts : input.model.experts)
    report.num_experts = std::max(report.num_experts, experts.num_experts);
  if (fused) {
    bool reversed = false;
    for (const Factor& factor : reading.factors.factors) {
      if (factor.site.expert >= 0)
        reversed =
            layout::parse_key(input.adapter.weights->tensors()[factor.a.tensor].name).kind == layout::KeyKind::lora_b;
    }
    report.orientation = reversed ? "reversed: lora_A has the output width" : "natural: lora_A has the input width";
    report.b_packing = reading.layout == Layout::unsloth_grouped ? "grouped by expert: column e * r + k"
                                                                 : "rank-major: column k * E + e";
  }
  report.ranks = verbs::describe_ranks(input);
  for (auto& sentence : verbs::value_anomalies(input.adapter, reading.factors))
    report.anomalies.push_back(std::move(sentence));
  report.consumers = verbs::consumer_verdicts(verbs::consumer_facts(input));
}

void fill_config(const AdapterConfig& config, InspectReport& report) {
  constexpr std::string_view kShown[] = {
      "peft_type",      "task_type",    "base_model_name_or_path", "r",
      "lora_alpha",     "rank_pattern", "alpha_pattern",           "use_rslora",
      "use_dora",       "bias",         "target_modules",          "target_parameters",
      "modules_to_save"};
  report.producer = producer(config);
  const pythonic::Json object = config::object_of(config);
  for (const std::string_view key : kShown) {
    const auto found = object.find(std::string(key));
    if (found == object.end() || found->is_null() || *found == false || (found->is_object() && found->empty()))
      continue;
    report.config.emplace_back(key, pythonic::dump_python(*found, -1));
  }
}

// The weights are missing or no safetensors file: what the config says is shown all the same. `error` is thrown again
// where there is no config either.
InspectReport config_alone(const std::string& path, const InputOptions& options, const Error& error) {
  InspectReport report;
  report.path = path;
  report.error = error.what();
  const std::filesystem::path root = resolve_path(path);
  const bool whole = options.adapter_name.empty() || options.adapter_name == "default";
  try {
    const AdapterConfig config = AdapterConfig::read((whole ? root : root / options.adapter_name).string());
    fill_config(config, report);
    list_refusals(config, report);
  } catch (const Error&) {
    throw error;
  }
  return report;
}

}  // namespace

InspectReport inspect(const std::string& path, const InputOptions& options) {
  Input input;
  InspectReport report;
  report.path = path;
  InputOptions lenient = options;
  lenient.read.verb = Verb::inspect;
  lenient.read.ignore_unused = true;
  bool decoded = true;
  try {
    input = load(path, lenient);
  } catch (const Error& error) {
    // The file itself must open; what it means may be in doubt, and that is what inspect is for.
    try {
      input.adapter = open(path, {options.adapter_name, options.open});
    } catch (const Error& unopened) {
      return config_alone(path, options, unopened);
    }
    report.error = error.what();
    decoded = false;
  }
  fill_config(input.adapter.config, report);
  report.model_type = input.model.model_type;
  report.family = input.model.source;
  report.dtype = dtypes_of(*input.adapter.weights);
  report.num_tensors = static_cast<std::int64_t>(input.adapter.weights->tensors().size());
  for (const TensorInfo& tensor : input.adapter.weights->tensors()) {
    report.bytes += tensor.bytes();
    std::uint64_t count = 1;
    for (const auto d : tensor.shape) count *= static_cast<std::uint64_t>(d);
    report.parameters += count;
  }
  report.tensors = verbs::describe_tensors(input, decoded);
  list_refusals(input.adapter.config, report);
  for (const auto& key : input.adapter.config.unknown)
    report.anomalies.push_back("unknown config key " + key + ": PEFT ignores it");
  if (decoded) {
    auto unknown = std::move(report.anomalies);
    fill_decoded(input, report);
    report.anomalies.insert(report.anomalies.end(), unknown.begin(), unknown.end());
    check_config(input, report);
  }
  return report;
}

}  // namespace peft
