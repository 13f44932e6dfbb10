#include "layout/encode/write_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "adapter/mlx_config.h"
#include "config/adapter_fields.h"
#include "layout/forms.h"
#include "layout/keys.h"
#include "layout/stacked.h"
#include "model/path.h"
#include "peft/error.h"
#include "pythonic/python_json.h"

namespace peft::layout {
namespace {

// The last `segments` dotted segments of a name; the whole name when it has no more.
std::string_view suffix(std::string_view name, int segments) {
  std::size_t at = name.size();
  for (int i = 0; i < segments; ++i) {
    if (at == 0) return name;
    at = name.rfind('.', at - 1);
    if (at == std::string_view::npos) return name;
  }
  return name.substr(at + 1);
}

constexpr std::string_view kOldDropout = "peft_cpp_lora_dropout";  // what lora_dropout was before it had to be 0

double scale_of_alpha(double alpha, std::int64_t rank, bool use_rslora) {
  const auto r = static_cast<double>(rank);
  return use_rslora ? alpha / std::sqrt(r) : alpha / r;
}

// Equal up to the last bits of a double: one division and one square root may differ by that much.
bool same_scale(double x, double y) { return x == y || std::abs(x - y) <= 4e-16 * std::max(std::abs(x), std::abs(y)); }

// Every name PEFT's suffix rule would be tried on: modules and the containers above them.
std::vector<std::string_view> module_names(const ModuleTree& tree) {
  std::unordered_set<std::string_view> names;
  const auto add = [&](std::string_view name) {
    while (!name.empty() && names.insert(name).second) {
      const auto dot = name.rfind('.');
      name = dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
    }
  };
  for (const Module& module : tree.modules) add(module.name);
  for (const Parameter& parameter : tree.parameters) add(parameter.module);
  return {names.begin(), names.end()};
}

std::vector<std::string> parameter_names(const ModuleTree& tree) {
  std::vector<std::string> names;
  for (const Module& module : tree.modules) names.push_back(module.name + ".weight");
  for (const Parameter& parameter : tree.parameters) names.push_back(parameter.full_name());
  return names;
}

std::vector<std::string_view> names_of(const Encoded& encoded, bool parameters) {
  std::vector<std::string_view> names;
  for (const TargetEntry& target : encoded.targets) {
    if (target.parameter == parameters) names.push_back(target.name);
  }
  return names;
}

// Short names where the tree of the model shows that they name the same modules, full names otherwise.
std::vector<std::string> target_list(const std::vector<std::string_view>& names, const std::optional<ModuleTree>& tree,
                                     bool parameters) {
  if (!tree || names.empty()) {
    std::vector<std::string> list(names.begin(), names.end());
    std::sort(list.begin(), list.end());
    return list;
  }
  if (!parameters) return shortest_suffixes(names, module_names(*tree));
  const std::vector<std::string> all = parameter_names(*tree);
  return shortest_suffixes(names, {all.begin(), all.end()});
}

double most_common(const std::vector<double>& values, double preferred) {
  std::vector<std::pair<double, int>> counts;
  for (const double value : values) {
    if (value == preferred) return preferred;
    auto at = std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == value; });
    if (at == counts.end())
      counts.emplace_back(value, 1);
    else
      ++at->second;
  }
  if (counts.empty()) return preferred;
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& x, const auto& y) { return x.second < y.second; })
      ->first;
}

Number number(double value) { return {value, value == std::floor(value) && std::abs(value) < 1e15}; }

void write_ranks(AdapterConfig& config, const Encoded& encoded) {
  std::vector<NamedValue> ranks, alphas;
  std::vector<double> rank_values, alpha_values;
  std::map<std::pair<double, std::int64_t>, double> known;  // thousands of targets have few scales
  for (const TargetEntry& target : encoded.targets) {
    const auto [at, fresh] = known.try_emplace({target.scale, target.rank}, 0);
    if (fresh) at->second = alpha_for_scale(target.scale, target.rank, config.use_rslora).value;
    const double alpha = at->second;
    ranks.push_back({target.name, static_cast<double>(target.rank)});
    alphas.push_back({target.name, alpha});
    rank_values.push_back(static_cast<double>(target.rank));
    alpha_values.push_back(alpha);
  }
  const double rank = most_common(rank_values, static_cast<double>(config.r));
  const double alpha = most_common(alpha_values, config.lora_alpha.value);
  config.r = static_cast<std::int64_t>(rank);
  if (alpha != config.lora_alpha.value) config.lora_alpha = number(alpha);
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  for (const auto& [name, value] : shortest_patterns(ranks, rank))
    config.rank_pattern.emplace_back(name, number(value));
  for (const auto& [name, value] : shortest_patterns(alphas, alpha))
    config.alpha_pattern.emplace_back(name, number(value));
}

// Entries of modules_to_save that no longer end a saved module's name are replaced by that module's own last segment.
void write_saved_modules(AdapterConfig& config, const Encoded& encoded) {
  if (!config.modules_to_save) return;
  std::vector<std::string> entries;
  const auto matches = [&](const std::string& entry) {
    return std::any_of(encoded.saved_modules.begin(), encoded.saved_modules.end(), [&](const std::string& m) {
      return m == entry || m.ends_with(entry) || m.find("." + entry + ".") != std::string::npos;
    });
  };
  for (const std::string& entry : *config.modules_to_save) {
    if (encoded.saved_modules.empty() || matches(entry)) entries.push_back(entry);
  }
  for (const std::string& module : encoded.saved_modules) {
    const bool covered = std::any_of(entries.begin(), entries.end(), [&](const std::string& e) {
      return module.ends_with(e) || module.find(e + ".") != std::string::npos;
    });
    if (!covered && entries.size() < config.modules_to_save->size())
      entries.push_back(module.substr(module.rfind('.') + 1));
  }
  std::sort(entries.begin(), entries.end());
  entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
  config.modules_to_save = entries;
}

void write_dropout(AdapterConfig& config, bool parameters, std::vector<std::string>& warnings) {
  if (parameters && config.lora_dropout != 0) {
    warnings.push_back(fmt::format(
        "lora_dropout {} is written as 0.0: PEFT refuses any other value on parameters. It plays no part in "
        "inference; the old value is kept as {}",
        config.lora_dropout, kOldDropout));
    config.set(kOldDropout, fmt::format("{}", config.lora_dropout));
    config.lora_dropout = 0;
  } else if (const std::string old = config.value(kOldDropout); !parameters && !old.empty()) {
    config.lora_dropout = std::strtod(old.c_str(), nullptr);
    config.erase(kOldDropout);
  }
}

void refuse_on_parameters(const AdapterConfig& config, std::string_view parameter, Layout to) {
  for (const auto& [row, value] : config::telling_keys(config)) {
    if (row->on_parameters) continue;
    at(config.file, std::string(parameter))
        .fail(ErrorCode::LO_NO_FORM,
              {.problem = std::string(row->key) + " does not exist on parameters: PEFT refuses the whole adapter",
               .expected = "something that " + std::string(info(to).name) + " can hold",
               .got = value,
               .hint = "merge the adapter into the base model, or keep the per-expert layout"});
  }
}

void write_generation(AdapterConfig& config, Layout to) {
  const auto v = version_of(to);
  config.peft_version = fmt::format("{}.{}.{}", v.major, v.minor, v.patch);
  config.drop_keys_newer_than(v);
  config.lora_B_layout = to == Layout::unsloth_grouped ? "grouped_by_expert" : "";
  if (to != Layout::unsloth_grouped) config.erase("lora_B_layout");
  config.erase("unsloth_fused_expert_lora");
}

constexpr const char* kConfigFile = "adapter_config.json";

// ---- Files with one rank and one alpha

pythonic::Json alpha_of(const Uniform& uniform) {
  const Number alpha = alpha_for_scale(uniform.scale, uniform.rank, false);
  return alpha.integer ? pythonic::Json(static_cast<std::int64_t>(alpha.value)) : pythonic::Json(alpha.value);
}

// What Tinker's own files say: no targets.
std::string tinker_config(const AdapterConfig& source, const Uniform& uniform) {
  pythonic::Json config;
  config["r"] = uniform.rank;
  config["lora_alpha"] = alpha_of(uniform);
  config["peft_type"] = "LORA";
  config["base_model_name_or_path"] = nullptr;
  if (source.base_model_name_or_path) config["base_model_name_or_path"] = *source.base_model_name_or_path;
  return pythonic::dump_python(config, 1, false);
}

// What the tensors of such a file are about.
struct UniformTargets {
  std::set<std::string> modules;     // last names of plain modules
  std::set<std::string> stacks;      // last names of stacks of experts
  std::set<std::string> parameters;  // "model.layers.*.mlp.experts.gate_up_proj"
  bool matrices = false;             // stacks that all experts share: matrices
};
UniformTargets targets_of(const std::vector<PlannedTensor>& tensors) {
  UniformTargets targets;
  for (const PlannedTensor& tensor : tensors) {
    const Key key = parse_key(tensor.name);
    const std::string leaf(model::leaf(key.module)), experts(model::parent(key.module));
    const bool stacked = is_stack_of_experts(key.module, tensor.shape.size());
    (stacked ? targets.stacks : targets.modules).insert(leaf);
    if (!stacked) continue;
    targets.matrices = targets.matrices || tensor.shape.size() == 2;
    targets.parameters.insert(model::replace_all(model::path_key(experts).key, "#", "*") +
                              (leaf == "down_proj" ? ".down_proj" : ".gate_up_proj"));
  }
  return targets;
}

// Keys that every program's loader of PEFT's form asks for, sorted.
pythonic::Json uniform_config(const AdapterConfig& source, const Uniform& uniform) {
  pythonic::Json config;
  config["base_model_name_or_path"] = nullptr;
  if (source.base_model_name_or_path) config["base_model_name_or_path"] = *source.base_model_name_or_path;
  config["bias"] = "none";
  config["lora_alpha"] = alpha_of(uniform);
  config["peft_type"] = "LORA";
  config["r"] = uniform.rank;
  config["task_type"] = source.task_type.value_or("CAUSAL_LM");
  return config;
}

std::string dump_sorted(const pythonic::Json& config) {
  std::map<std::string, pythonic::Json> keys;
  for (const auto& [key, value] : config.items()) keys.emplace(key, value);
  pythonic::Json sorted;
  for (auto& [key, value] : keys) sorted[key] = std::move(value);
  return pythonic::dump_python(sorted, 2, false);
}

std::string stacked_config(const AdapterConfig& source, const Uniform& uniform, UniformTargets targets) {
  pythonic::Json config = uniform_config(source, uniform);
  targets.modules.merge(targets.stacks);
  config["target_modules"] = targets.modules;
  return pythonic::dump_python(config, 2, false);
}

// As NeMo Automodel writes it: one rank and one alpha, and no more keys than PEFT needs.
std::string nemo_config(const AdapterConfig& written) {
  pythonic::Json config = uniform_config(written, {});
  config["r"] = written.r;
  config["lora_alpha"] = pythonic::Json::parse(written.value("lora_alpha"));
  config["target_modules"] = pythonic::Json::array();
  if (const auto* modules = std::get_if<std::vector<std::string>>(&written.target_modules))
    config["target_modules"] = *modules;
  if (written.target_parameters) config["target_parameters"] = *written.target_parameters;
  config["use_dora"] = written.use_dora;
  return dump_sorted(config);
}

// As VeOmniLoraConfig.to_peft_dict() has it.
std::string veomni_config(const AdapterConfig& source, const Uniform& uniform, const UniformTargets& targets) {
  pythonic::Json config = uniform_config(source, uniform);
  config["task_type"] = nullptr;
  if (source.task_type) config["task_type"] = *source.task_type;
  for (const char* key : {"exclude_modules", "modules_to_save", "target_modules", "target_parameters"})
    config[key] = nullptr;
  for (const char* key : {"fan_in_fan_out", "inference_mode", "use_dora", "use_rslora"}) config[key] = false;
  for (const char* key : {"alpha_pattern", "rank_pattern"}) config[key] = pythonic::Json::object();
  config["init_lora_weights"] = true;
  config["lora_dropout"] = 0.0;
  if (!targets.modules.empty()) config["target_modules"] = targets.modules;
  pythonic::Json own;
  own["moe_mode"] = nullptr;
  if (!targets.stacks.empty()) {
    config["target_parameters"] = targets.parameters;
    own["moe_mode"] = targets.matrices ? "shared" : "independent";
  }
  own["moe_two_lora_gate_up"] = true;
  own["schema_version"] = 1;
  config["veomni_lora"] = own;
  return dump_sorted(config);
}

}  // namespace

std::vector<std::string> shortest_suffixes(const std::vector<std::string_view>& wanted,
                                           const std::vector<std::string_view>& all) {
  const std::unordered_set<std::string_view> wanted_set(wanted.begin(), wanted.end());
  std::unordered_set<std::string> result;
  std::vector<std::string_view> open = wanted;
  for (int segments = 1; !open.empty(); ++segments) {
    std::unordered_map<std::string_view, bool> clean;
    for (const auto name : open) clean.emplace(suffix(name, segments), true);
    for (const auto name : all) {
      if (wanted_set.count(name) != 0) continue;
      if (const auto at = clean.find(suffix(name, segments)); at != clean.end()) at->second = false;
    }
    std::vector<std::string_view> rest;
    for (const auto name : open) {
      const auto tail = suffix(name, segments);
      if (clean[tail] || tail == name)
        result.emplace(tail);
      else
        rest.push_back(name);
    }
    open = std::move(rest);
  }
  std::vector<std::string> sorted(result.begin(), result.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

std::vector<NamedValue> shortest_patterns(const std::vector<NamedValue>& values, double otherwise) {
  std::vector<NamedValue> result;
  std::vector<const NamedValue*> open;
  for (const auto& value : values) open.push_back(&value);
  for (int segments = 1; !open.empty(); ++segments) {
    std::unordered_map<std::string_view, std::pair<double, bool>> uniform;
    for (const auto* value : open) {
      const auto [at, fresh] = uniform.emplace(suffix(value->name, segments), std::pair{value->value, true});
      if (!fresh && at->second.first != value->value) at->second.second = false;
    }
    std::vector<const NamedValue*> rest;
    std::unordered_set<std::string_view> taken;
    for (const auto* value : open) {
      const auto tail = suffix(value->name, segments);
      if (!uniform[tail].second && tail != value->name)
        rest.push_back(value);
      else if (value->value != otherwise && taken.insert(tail).second)
        result.push_back({tail, value->value});
    }
    open = std::move(rest);
  }
  std::sort(result.begin(), result.end(), [](const NamedValue& x, const NamedValue& y) { return x.name < y.name; });
  return result;
}

Number alpha_for_scale(double scale, std::int64_t rank, bool use_rslora) {
  const auto r = static_cast<double>(rank);
  const double exact = use_rslora ? scale * std::sqrt(r) : scale * r;
  for (int digits = 1; digits <= 17; ++digits) {
    const double candidate = std::strtod(fmt::format("{:.{}e}", exact, digits - 1).c_str(), nullptr);
    if (same_scale(scale_of_alpha(candidate, rank, use_rslora), scale)) return number(candidate);
  }
  return {exact, false};
}

AdapterConfig write_config(const AdapterConfig& source, const Encoded& encoded, const Model& model, Layout to,
                           std::vector<std::string>& warnings) {
  AdapterConfig config = source;
  const Generation g = generation_of(to, model);
  const auto modules = names_of(encoded, false), parameters = names_of(encoded, true);
  if (!parameters.empty()) refuse_on_parameters(source, *std::ranges::min_element(parameters), to);
  config.target_modules = target_list(modules, model.tree(g), false);
  const auto parameter_list = target_list(parameters, model.tree(g), true);
  config.target_parameters = parameter_list.empty() ? std::nullopt : std::optional(parameter_list);
  config.exclude_modules = std::monostate();
  config.layers_to_transform.reset();
  config.layers_pattern.reset();
  write_ranks(config, encoded);
  write_saved_modules(config, encoded);
  write_dropout(config, !parameters.empty(), warnings);
  write_generation(config, to);
  return config;
}

void add_weights(Plan& plan, std::vector<PlannedTensor> tensors, Layout to) {
  PlannedFile file, experts;
  file.name = info(to).weights_file, experts.name = "fused_expert_lora.safetensors";
  experts.metadata.clear();
  for (PlannedTensor& tensor : tensors) {
    const bool own_file = to == Layout::ktransformers && !tensor.name.starts_with(kPrefix);
    (own_file ? experts : file).tensors.push_back(std::move(tensor));
  }
  plan.files.push_back(std::move(file));
  if (!experts.tensors.empty()) plan.files.push_back(std::move(experts));
}

void add_adapter_files(Plan& plan, Encoded encoded, const AdapterConfig& source, const Model& model, Layout to) {
  UniformTargets targets;
  if (find_stacked_form(to) != nullptr) targets = targets_of(encoded.tensors);
  add_weights(plan, std::move(encoded.tensors), to);
  PlannedFile& file = plan.files.back();
  switch (to) {
    case Layout::gguf:
      file.gguf = encoded.gguf;
      plan.single_file = true;
      break;
    case Layout::mlx:
      file.metadata.clear();  // MLX-LM writes none
      plan.texts.emplace_back(kConfigFile,
                              adapter::write_mlx_config(source, encoded.uniform->rank, encoded.uniform->scale,
                                                        encoded.uniform->num_layers, encoded.uniform->keys));
      break;
    case Layout::tinker:
      plan.texts.emplace_back(kConfigFile, tinker_config(source, *encoded.uniform));
      break;
    case Layout::megatron_bridge:
    case Layout::sglang:
    case Layout::ktransformers:
      plan.texts.emplace_back(kConfigFile, stacked_config(source, *encoded.uniform, std::move(targets)));
      break;
    case Layout::nemo: {
      AdapterConfig plain = source;
      plain.use_rslora = false;  // its scale is alpha / rank: write_config finds the alpha for that
      plan.texts.emplace_back(kConfigFile, nemo_config(write_config(plain, encoded, model, to, plan.warnings)));
      plan.texts.emplace_back("automodel_peft_config.json", "{\n  \"paramwrapper_layout\": \"peft-0.19.1\"\n}");
      break;
    }
    case Layout::veomni:
      plan.texts.emplace_back(kConfigFile, veomni_config(source, *encoded.uniform, targets));
      break;
    default:
      plan.texts.emplace_back(kConfigFile, write_config(source, encoded, model, to, plan.warnings).dump());
  }
  plan.exactness = encoded.exactness;
  plan.steps = std::move(encoded.steps);
  plan.warnings.insert(plan.warnings.end(), encoded.warnings.begin(), encoded.warnings.end());
}

}  // namespace peft::layout
