// A new adapter: targets resolved as PEFT does, factors made and given their first values.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <algorithm>

#include "config/peft_keys.h"
#include "nn/lora/dora.h"
#include "nn/lora/impl.h"
#include "nn/lora/init.h"
#include "peft/error.h"
#include "peft/targets.h"
#include "peft/verbs.h"

namespace peft::nn {
namespace {

constexpr const char* kPeftVersion = "0.21.2";  // whose files these are

// PEFT makes factors in fp32, or in the base's fp64.
at::ScalarType factor_type(const Tensor& weight) {
  return weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Checks of the values, as for a config from a file.
AdapterConfig checked(const LoraConfig& config) {
  AdapterConfig result = AdapterConfig::parse(config.dump(), config.file.empty() ? "LoraConfig" : config.file);
  require_language_model(result);
  require_supported(result);
  require_known_init(result);
  return result;
}

// A key of a file may be a newer PEFT's; in code it is a slip of the pen.
void check_unknown(const AdapterConfig& config, bool from_file, std::vector<std::string>& warnings) {
  for (const std::string& key : config.unknown) {
    if (!from_file) {
      throw Error(ErrorCode::CF_UNSUP,
                  {.tensor = key, .problem = "LoraConfig of PEFT has no such field", .hint = "is the name misspelt?"});
    }
    warnings.push_back(fmt::format("unknown config key {}: kept as it is; PEFT ignores it", printable(key)));
  }
}

// PEFT writes every key of its version, whatever was given.
void complete(AdapterConfig& config) {
  for (const config::PeftKey& row : config::peft_keys()) {
    if (config.value(row.key).empty()) config.set(row.key, row.value);
  }
  if (!config.peft_version) config.peft_version = kPeftVersion;
}

void require_one_bias(const PeftModel::Impl& impl, const AdapterConfig& config) {
  const bool other = std::any_of(impl.entries.begin(), impl.entries.end(),
                                 [](const AdapterEntry& e) { return e.config.bias != "none"; });
  if (impl.entries.empty() || (config.bias == "none" && !other)) return;
  throw Error(ErrorCode::CF_VALUE, {.tensor = "bias",
                                    .problem = "only one adapter of a model can train biases",
                                    .expected = "\"none\" in all adapters when there are several",
                                    .got = config.bias});
}

SiteFactors new_factors(const Site& site, const Target& target, const AdapterConfig& config) {
  SiteFactors factors;
  const auto options = site.weight->options().dtype(factor_type(*site.weight)).requires_grad(false);
  const std::int64_t experts = site.num_experts();
  factors.stack.a = at::empty({experts, target.rank, site.in()}, options);
  factors.stack.b = at::empty({experts, target.rank, site.out()}, options);
  factors.stack.scale = target.scaling;
  factors.dropout = config.lora_dropout;
  if (config.lora_bias && !site.by_parameter) {
    if (site.kind == SiteKind::embedding) {
      throw Error(ErrorCode::CF_UNSUP, {.tensor = site.target(),
                                        .problem = "lora_bias does not exist for an Embedding",
                                        .hint = "take it out of target_modules"});
    }
    factors.bias = at::empty({site.out()}, options);
  }
  return factors;
}

void make_factors(PeftModel::Impl& impl, int id, const ResolvedTargets& resolved, at::Generator& generator) {
  const AdapterConfig& config = resolved.config_after;
  // Every place is looked up before anything is drawn: an unsuitable target changes nothing.
  std::vector<std::pair<Site*, const Target*>> places;
  for (const Target& target : resolved.targets) {
    const auto dot = target.name.rfind('.');
    if (target.parameter) {
      places.emplace_back(&impl.site(target.name.substr(0, dot), target.name.substr(dot + 1), true), &target);
    } else {
      places.emplace_back(&impl.site(target.name, "weight", false), &target);
    }
  }
  std::sort(places.begin(), places.end(), [](const auto& x, const auto& y) { return x.first->order < y.first->order; });
  for (const auto& [site, target] : places) {
    SiteFactors factors = new_factors(*site, *target, config);
    if (factors.bias.defined() && site->base_bias == nullptr) {
      impl.warnings.push_back(site->module + ": lora_bias cannot be merged later, because the module has no bias");
    }
    initialise(*site, factors, config.init_lora_weights, generator);
    if (config.use_dora) {
      factors.magnitude = site->weight->is_meta() ? at::empty({site->out()}, factors.stack.a.options())
                                                  : row_norms(*site, factors).clone();
    }
    site->adapters[id] = std::move(factors);
  }
}

void make_copies(PeftModel::Impl& impl, int id, const ResolvedTargets& resolved) {
  for (const std::string& saved : resolved.modules_to_save) {
    for (const auto& module : impl.base->modules().all()) {
      if (module->name != saved && !module->name.starts_with(saved + ".")) continue;
      for (const Slot& slot : module->slots) {
        if (!slot.tensor->defined()) continue;
        Overlay& overlay = impl.overlay(module->name, slot.name, Overlay::Kind::saved_module);
        overlay.adapters[id] = overlay.original.detach().clone();
      }
    }
  }
}

void add_bias(PeftModel::Impl& impl, int id, const std::string& module, const std::string& parameter,
              const std::string& suffix) {
  Overlay& overlay = impl.overlay(module, parameter, Overlay::Kind::base_value);
  if (overlay.adapters.contains(id)) return;
  overlay.adapters[id] = overlay.original.detach().clone();
  overlay.suffix[id] = suffix;
}

}  // namespace

void make_biases(PeftModel::Impl& impl, int id, const AdapterConfig& config) {
  if (config.bias == "none") return;
  for (const auto& module : impl.base->modules().all()) {
    for (const Slot& slot : module->slots) {
      const bool bias = slot.name.find("bias") != std::string::npos && slot.tensor->defined();
      const Site* site = impl.find_site(module->name, "weight");
      const bool adapted = site != nullptr && site->find(id) != nullptr && !site->by_parameter;
      if (!bias || (config.bias == "lora_only" && !(adapted && slot.name == "bias"))) continue;
      add_bias(impl, id, module->name, slot.name, adapted ? "base_layer." + slot.name : slot.name);
    }
  }
}

void create_adapter(PeftModel::Impl& impl, const std::string& name, const LoraConfig& given,
                    const AdapterModelOptions& options) {
  const at::NoGradGuard no_grad;
  AdapterConfig config = checked(given);
  check_unknown(config, !given.file.empty(), impl.warnings);
  if (auto rewritten = rewrite_v4_targets(config, impl.model, impl.warnings)) config = std::move(*rewritten);
  require_one_bias(impl, config);
  const ResolvedTargets resolved = resolve_targets(config, impl.tree, impl.model, Generation::v5);
  const int id = impl.add_entry(name, resolved.config_after).id;
  try {
    at::Generator generator = at::detail::createCPUGenerator(options.seed);
    make_factors(impl, id, resolved, generator);
    make_copies(impl, id, resolved);
    make_biases(impl, id, config);
    make_token_rows(impl, id, config);
    require_rows_apart(impl);
  } catch (...) {
    impl.forget(id);
    throw;
  }
  AdapterEntry& entry = impl.entry(name);
  complete(entry.config);
  const bool list = std::holds_alternative<std::vector<std::string>>(entry.config.target_modules);
  if (list && !impl.model.peft_config.empty() && !entry.config.target_parameters) {
    entry.config.target_parameters.emplace();  // PEFT's conversion for these types leaves a list, be it empty
  }
  entry.config.base_model_name_or_path = impl.base->folder();
  warn_of_tied(impl, id);
  impl.warnings.insert(impl.warnings.end(), resolved.warnings.begin(), resolved.warnings.end());
}

}  // namespace peft::nn
