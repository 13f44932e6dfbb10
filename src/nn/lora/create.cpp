#include "nn/lora/create.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "config/peft_keys.h"
#include "config/peft_rules.h"
#include "nn/lora/sites/site.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/model.h"
#include "peft/verbs.h"

namespace peft::nn {
namespace {

constexpr const char* kPeftVersion = "0.21.2";  // whose files these are

// PEFT makes factors in fp32, or in the base's fp64.
at::ScalarType factor_type(const Tensor& weight) {
  return weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Checks the values as those of a file are checked.
AdapterConfig checked(const LoraConfig& config) {
  AdapterConfig result = AdapterConfig::parse(config.dump(), config.file.empty() ? "LoraConfig" : config.file);
  require_language_model(result);
  require_usable(result, Verb::create);
  require_known_init(result);
  return result;
}

// An unknown key of a file may belong to a newer PEFT: a warning. In code it is a mistake: an error.
void check_unknown(const AdapterConfig& config, bool from_file, std::vector<std::string>& warnings) {
  for (const std::string& key : config.unknown) {
    if (!from_file) {
      peft::at({}, key).fail(ErrorCode::CF_UNSUP,
                             {.problem = "LoraConfig of PEFT has no such field", .hint = "is the name misspelt?"});
    }
    warnings.push_back(fmt::format("unknown config key {}: kept as it is; PEFT ignores it", printable(key)));
  }
}

// Adds the keys that were not given: PEFT writes every key of its version.
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
  peft::at({}, "bias")
      .fail(ErrorCode::CF_VALUE, {.problem = "only one adapter of a model can train biases",
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
      peft::at({}, site.target())
          .fail(ErrorCode::CF_UNSUP,
                {.problem = "lora_bias does not exist for an Embedding", .hint = "take it out of target_modules"});
    }
    factors.bias = at::empty({site.out()}, options);
  }
  return factors;
}

void make_factors(PeftModel::Impl& impl, int id, const ResolvedTargets& resolved, at::Generator& generator) {
  const AdapterConfig& config = resolved.config_after;
  // All sites are found before any value is drawn, so that an unsuitable target changes nothing.
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
    for (const auto& module : impl.base->impl().modules.all()) {
      if (module->name != saved && !module->name.starts_with(saved + ".")) continue;
      for (const ModuleTensor& slot : module->slots) {
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

using TokenIds = std::vector<std::int64_t>;

// By module. A plain list is for the input embedding. A name stands for every module whose name ends with it.
std::map<std::string, TokenIds> wanted_rows(const PeftModel::Impl& impl, const AdapterConfig& config) {
  std::map<std::string, TokenIds> wanted;
  for (const auto& [name, ids] : *config.trainable_token_indices) {
    bool found = name.empty();
    if (found) wanted[impl.tree.input_embedding] = ids;
    for (const auto& module : impl.base->impl().modules.all()) {
      if (name.empty() || !config::is_named_by(module->name, name)) continue;
      wanted[module->name] = ids;
      found = true;
    }
    if (found) continue;
    peft::at({}, "trainable_token_indices")
        .fail(ErrorCode::CF_TARGET,
              {.problem = "no module of the base has this name", .expected = "the name of an embedding", .got = name});
  }
  return wanted;
}

void check_ids(const std::string& module, const TokenIds& ids, std::int64_t vocabulary) {
  const auto refuse = [&](const char* problem, const std::string& got) {
    peft::at({}, "trainable_token_indices")
        .fail(ErrorCode::CF_VALUE,
              {.problem = problem + (" of " + module), .expected = fmt::format("0 to {}", vocabulary - 1), .got = got});
  };
  if (ids.empty()) refuse("no tokens are named", "an empty list");
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocabulary) refuse("a token is outside of the vocabulary", std::to_string(id));
  }
}

// Where config.json ties the embeddings, the output embedding gets the same new rows, unless other tokens are named for
// it.
void follow_input(PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  if (!base.config.tied) return;
  const auto input = std::find_if(impl.token_rows.begin(), impl.token_rows.end(), [&](const TokenRows& rows) {
    return rows.module == base.embed->name && rows.find(id) != nullptr;
  });
  if (input == impl.token_rows.end()) return;
  const TokenRows::Rows rows = *input->find(id);
  TokenRows& output = impl.rows_of(base.lm_head->name);
  const TokenRows::Rows* own = output.find(id);
  if (own != nullptr && own->tokens != rows.tokens) return;
  output.adapters[id] = {.ids = rows.ids, .tokens = rows.tokens, .delta = rows.delta, .follows = true};
  if (base.tied) return;
  impl.warnings.push_back(
      fmt::format("config.json says tie_word_embeddings = true, so the trainable tokens of {} "
                  "replace rows of {} too, as in PEFT, although the file has its own",
                  input->module, output.module));
}

[[noreturn]] void not_apart(const std::string& module, const std::string& problem) {
  peft::at({}, module)
      .fail(ErrorCode::CF_TARGET,
            {.problem = problem,
             .expected = "one of the two",
             .hint = "take it out of target_modules, modules_to_save or trainable_token_indices"});
}

}  // namespace

void require_language_model(const AdapterConfig& config) {
  const auto heads = config::task_heads(config);
  if (heads.empty()) return;
  peft::at(config.file, "task_type")
      .fail(ErrorCode::CF_UNSUP,
            {.problem = fmt::format("the adapter has a head of its own ({}), which a language model has no place for",
                                    fmt::join(heads, ", ")),
             .expected = "CAUSAL_LM",
             .got = *config.task_type,
             .hint = "run it on its own class with PEFT; peft inspect, convert and merge read it"});
}

void make_token_rows(PeftModel::Impl& impl, int id, const AdapterConfig& config) {
  if (!config.trainable_token_indices) return;
  for (const auto& [module, ids] : wanted_rows(impl, config)) {
    TokenRows& rows = impl.rows_of(module);
    const Tensor weight = rows.weight->detach();
    check_ids(module, ids, weight.size(0));
    const Tensor index = at::tensor(ids, at::kLong).to(weight.device());
    const auto type = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;  // as factors
    // A model of shapes alone has no values to begin with.
    const Tensor start =
        weight.is_meta() ? at::empty({index.size(0), weight.size(1)}, weight.options()) : weight.index_select(0, index);
    rows.adapters[id] = {.ids = index, .tokens = ids, .delta = start.to(type)};
  }
  follow_input(impl, id);
}

void require_rows_apart(const PeftModel::Impl& impl) {
  for (const TokenRows& rows : impl.token_rows) {
    const Site* site = impl.find_site(rows.module, "weight");
    for (const auto& [id, own] : rows.adapters) {
      if (site != nullptr && !site->adapters.empty()) {
        const bool dora = std::any_of(site->adapters.begin(), site->adapters.end(),
                                      [](const auto& a) { return a.second.magnitude.defined(); });
        if (!own.follows) not_apart(rows.module, "LoRA and trainable tokens on the same embedding, as PEFT refuses");
        if (dora) not_apart(rows.module, "DoRA on an output embedding that is tied to trainable tokens");
      }
      for (const Overlay& overlay : impl.overlays) {
        const bool copy = overlay.kind == Overlay::Kind::saved_module && overlay.module == rows.module;
        if (copy && overlay.adapters.contains(id)) {
          not_apart(rows.module, "modules_to_save and trainable tokens on the same embedding, as PEFT refuses");
        }
      }
    }
  }
}

void warn_of_tied(PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  if (!base.tied) return;
  std::vector<std::string> modules;
  for (const auto& site : impl.sites) {
    if (base.is_embedding(site->weight) && site->find(id) != nullptr) modules.push_back(site->module);
  }
  for (const Overlay& overlay : impl.overlays) {
    const bool copy = overlay.kind == Overlay::Kind::saved_module && overlay.adapters.contains(id);
    if (copy && base.is_embedding(overlay.places.front())) modules.push_back(overlay.module);
  }
  for (const std::string& module : modules) {
    impl.warnings.push_back(
        fmt::format("{} is tied (tie_word_embeddings) and part of the adapter: the adapter acts "
                    "on this module alone, and merging it gives lm_head a tensor of its own",
                    module));
  }
}

void make_biases(PeftModel::Impl& impl, int id, const AdapterConfig& config) {
  if (config.bias == "none") return;
  for (const auto& module : impl.base->impl().modules.all()) {
    for (const ModuleTensor& slot : module->slots) {
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
