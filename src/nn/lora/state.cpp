#include "nn/lora/state.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "nn/lora/sites/hooks.h"
#include "nn/model/network.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

std::string names_of(const std::vector<AdapterEntry>& entries) {
  std::vector<std::string> names;
  for (const AdapterEntry& entry : entries) names.push_back(entry.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// The position of a module and parameter in the model, to keep sites in its order.
std::pair<std::size_t, std::size_t> position(const Modules& modules, const std::string& module,
                                             const std::string& parameter) {
  const auto& all = modules.all();
  const auto at = std::find_if(all.begin(), all.end(), [&](const auto& m) { return m->name == module; });
  if (at == all.end()) return {all.size(), 0};
  const auto& slots = (*at)->slots;
  const auto slot =
      std::find_if(slots.begin(), slots.end(), [&](const ModuleTensor& s) { return s.name == parameter; });
  return {static_cast<std::size_t>(at - all.begin()), static_cast<std::size_t>(slot - slots.begin())};
}

LinearHook& hook_in(Linear& module, const std::shared_ptr<Switch>& control) {
  if (!module.adapter) module.adapter = std::make_shared<LinearHook>();
  auto& hook = static_cast<LinearHook&>(*module.adapter);
  hook.control = control;
  return hook;
}
EmbeddingHook& hook_in(Embedding& module, const std::shared_ptr<Switch>& control) {
  if (!module.adapter) module.adapter = std::make_shared<EmbeddingHook>();
  auto& hook = static_cast<EmbeddingHook&>(*module.adapter);
  hook.control = control;
  return hook;
}
ExpertHook& hook_in(Experts::Matrix& matrix, const std::shared_ptr<Switch>& control) {
  if (!matrix.adapter) matrix.adapter = std::make_shared<ExpertHook>();
  auto& hook = static_cast<ExpertHook&>(*matrix.adapter);
  hook.control = control;
  return hook;
}

void place_on_experts(Site& site, Experts& experts, const std::shared_ptr<Switch>& control) {
  for (Experts::Matrix* matrix : {&experts.gate_up, &experts.down}) {
    if (site.weight == &matrix->weight) {
      site.kind = SiteKind::experts;
      site.in_out = matrix->in_out;
      hook_in(*matrix, control).site = &site;
      return;
    }
    if (site.weight == &matrix->bias) {
      site.kind = SiteKind::bias_rows;
      hook_in(*matrix, control).bias_site = &site;
      return;
    }
  }
  at({}, site.name())
      .fail(ErrorCode::CF_TARGET,
            {.problem = "LoRA is not implemented on this parameter of experts", .hint = "target their matrices"});
}

}  // namespace

AdapterEntry* PeftModel::Impl::find_entry(const std::string& name) {
  const auto at = std::find_if(entries.begin(), entries.end(), [&](const auto& e) { return e.name == name; });
  return at == entries.end() ? nullptr : &*at;
}

AdapterEntry& PeftModel::Impl::entry(const std::string& name) {
  if (AdapterEntry* found = find_entry(name)) return *found;
  peft::at({}, name).fail(ErrorCode::USAGE,
                          {.problem = "there is no adapter of this name",
                           .expected = entries.empty() ? "an adapter that was added" : "one of " + names_of(entries),
                           .got = name});
}

const AdapterEntry& PeftModel::Impl::entry_of(int id) const {
  return *std::find_if(entries.begin(), entries.end(), [&](const auto& e) { return e.id == id; });
}

AdapterEntry& PeftModel::Impl::add_entry(const std::string& name, const AdapterConfig& config) {
  const bool bad = name.empty() || name == base_name || name.find('/') != std::string::npos || name.front() == '.';
  if (bad || find_entry(name) != nullptr) {
    peft::at({}, name).fail(ErrorCode::USAGE, {.problem = bad ? "this cannot be the name of an adapter"
                                                              : "there is an adapter of this name",
                                               .expected = bad ? "a name that can be a folder's" : "a new name",
                                               .got = name,
                                               .hint = bad ? "" : "delete_adapter() first, or choose another name"});
  }
  AdapterEntry added;
  added.id = next_id++;
  added.name = name;
  added.config = config;
  entries.push_back(std::move(added));
  return entries.back();
}

Site* PeftModel::Impl::find_site(const std::string& module, const std::string& parameter) const {
  const auto at = site_by_name.find(module + "." + parameter);
  return at == site_by_name.end() ? nullptr : at->second;
}

Site& PeftModel::Impl::site(const std::string& module, const std::string& parameter, bool by_parameter) {
  if (Site* found = find_site(module, parameter)) {
    // The two kinds of targets have different factors. PEFT refuses one order; in the other it gives the second
    // adapter factors of the first adapter's kind.
    if (found->by_parameter != by_parameter && !found->adapters.empty()) {
      at({}, found->name())
          .fail(ErrorCode::CF_TARGET, {.problem = "one adapter targets the module by name, another one its parameter",
                                       .hint = "use target_modules for both, or target_parameters"});
    }
    found->by_parameter = by_parameter;
    return *found;
  }
  Modules& modules = base->impl().modules;
  nn::Module* owner = modules.find(module);
  Tensor* weight = owner == nullptr ? nullptr : owner->find(parameter);
  if (weight == nullptr) {
    peft::at({}, module + "." + parameter)
        .fail(ErrorCode::LO_TARGET, {.problem = "the base model has no such module or parameter",
                                     .expected = "a name of " + base->folder(),
                                     .hint = "is this the right base model for the adapter?"});
  }
  auto made = std::make_unique<Site>();
  made->module = module, made->parameter = parameter, made->by_parameter = by_parameter;
  made->owner = owner, made->weight = weight;
  if (auto* linear = dynamic_cast<Linear*>(owner); linear != nullptr && weight == &linear->weight) {
    made->base_bias = linear->bias.defined() ? &linear->bias : nullptr;
    hook_in(*linear, control).site = made.get();
  } else if (auto* embedding = dynamic_cast<Embedding*>(owner); embedding != nullptr) {
    made->kind = SiteKind::embedding;
    hook_in(*embedding, control).site = made.get();
  } else if (auto* experts = dynamic_cast<Experts*>(owner); experts != nullptr) {
    place_on_experts(*made, *experts, control);
  } else {
    at({}, module + "." + parameter)
        .fail(ErrorCode::CF_TARGET,
              {.problem = "LoRA is not implemented on a " + owner->class_name,
               .hint = "target Linear and Embedding modules, routers, and the matrices of experts"});
  }
  made->order = position(modules, module, parameter);
  const auto after = std::upper_bound(sites.begin(), sites.end(), made->order,
                                      [](const auto& order, const auto& other) { return order < other->order; });
  site_by_name[made->name()] = made.get();
  return **sites.insert(after, std::move(made));
}

Overlay& PeftModel::Impl::overlay(const std::string& module, const std::string& parameter, Overlay::Kind kind) {
  for (Overlay& known : overlays) {
    if (known.module == module && known.parameter == parameter) return known;
  }
  nn::Module* owner = base->impl().modules.find(module);
  Tensor* tensor = owner == nullptr ? nullptr : owner->find(parameter);
  if (tensor == nullptr || !tensor->defined()) {
    peft::at({}, module + "." + parameter)
        .fail(ErrorCode::LO_TARGET, {.problem = "the base model has no such tensor",
                                     .hint = "is this the right base model for the adapter?"});
  }
  Overlay& made = overlays.emplace_back();
  made.kind = kind, made.module = module, made.parameter = parameter, made.original = *tensor;
  made.places.push_back(tensor);
  if (kind == Overlay::Kind::base_value) {  // a tied tensor changes wherever it is used
    for (const auto& other : base->impl().modules.all()) {
      for (const ModuleTensor& slot : other->slots) {
        if (slot.tensor != tensor && slot.tensor->defined() && slot.tensor->is_same(*tensor)) {
          made.places.push_back(slot.tensor);
        }
      }
    }
  }
  if (auto* linear = dynamic_cast<Linear*>(owner); linear != nullptr && parameter == "weight") {
    hook_in(*linear, control).saved = &made;
  } else if (auto* embedding = dynamic_cast<Embedding*>(owner)) {
    hook_in(*embedding, control).saved = &made;
  }
  return made;
}

TokenRows& PeftModel::Impl::rows_of(const std::string& name) {
  for (TokenRows& known : token_rows) {
    if (known.module == name) return known;
  }
  auto* embedding = base->impl().modules.find<Embedding>(name);
  auto* linear = base->impl().modules.find<Linear>(name);
  const bool plain = linear != nullptr && linear->kind == ModuleKind::linear && !linear->bias.defined();
  if (embedding == nullptr && !plain) {
    at({}, name).fail(ErrorCode::CF_TARGET,
                      {.problem = "trainable_token_indices needs an embedding, or a Linear without bias",
                       .hint = "name one, or give a list of ids"});
  }
  TokenRows& made = token_rows.emplace_back();
  made.module = name;
  made.weight = embedding != nullptr ? &embedding->weight : &linear->weight;
  (embedding != nullptr ? hook_in(*embedding, control).rows : hook_in(*linear, control).rows) = &made;
  return made;
}

std::string PeftModel::Impl::key_of(const Site& site, int adapter) const {
  std::string key = site.module;
  if (!site.by_parameter) return key;
  bool later = false;
  for (const ModuleTensor& slot : site.owner->slots) {
    if (later) {
      const Site* other = find_site(site.module, slot.name);
      if (other != nullptr && other->by_parameter && other->find(adapter) != nullptr) key += ".base_layer";
    }
    later = later || slot.name == site.parameter;
  }
  return key;
}

void PeftModel::Impl::select_overlays(const std::vector<int>& ids) const {
  for (const Overlay& overlay : overlays) overlay.select(ids);
}

void PeftModel::Impl::activate(std::vector<int> ids, bool train) {
  control->active = std::move(ids);
  select_overlays(control->enabled ? control->active : std::vector<int>{});
  const auto& active = control->active;
  for (const AdapterEntry& entry : entries) {
    set_gradients(entry.id, train && std::find(active.begin(), active.end(), entry.id) != active.end());
  }
}

void PeftModel::Impl::set_gradients(int id, bool on) {
  for (const auto& site : sites) {
    const auto own = site->adapters.find(id);
    if (own == site->adapters.end()) continue;
    SiteFactors& factors = own->second;
    for (Tensor* tensor : {&factors.stack.a, &factors.stack.b, &factors.bias, &factors.magnitude}) {
      if (tensor->defined()) tensor->requires_grad_(on);
    }
  }
  const bool trains_biases = entry_of(id).config.bias != "none";
  for (Overlay& overlay : overlays) {
    const auto own = overlay.adapters.find(id);
    if (own == overlay.adapters.end()) continue;
    const bool bias = trains_biases && overlay.parameter.find("bias") != std::string::npos;
    // A saved embedding is kept with the adapter and not trained.
    own->second.requires_grad_(on && (overlay.kind == Overlay::Kind::saved_module || bias));
  }
  for (TokenRows& rows : token_rows) {
    if (const auto own = rows.adapters.find(id); own != rows.adapters.end()) own->second.delta.requires_grad_(on);
  }
}

void PeftModel::Impl::forget(int id) {
  for (const auto& site : sites) site->adapters.erase(id);
  for (Overlay& overlay : overlays) overlay.adapters.erase(id), overlay.suffix.erase(id);
  for (TokenRows& rows : token_rows) rows.adapters.erase(id);
  std::erase_if(entries, [&](const AdapterEntry& e) { return e.id == id; });
  std::erase(control->active, id);
}

void PeftModel::Impl::remove_hooks() {
  base->impl().has_adapters = false;
  select_overlays({});
  for (const auto& module : base->impl().modules.all()) {
    if (auto* linear = dynamic_cast<Linear*>(module.get())) linear->adapter.reset();
    if (auto* embedding = dynamic_cast<Embedding*>(module.get())) embedding->adapter.reset();
    if (auto* experts = dynamic_cast<Experts*>(module.get())) {
      experts->gate_up.adapter.reset();
      experts->down.adapter.reset();
    }
  }
}

bool PeftModel::Impl::is_merged(int id) const {
  const auto has = [id](const std::vector<int>& merged) { return std::count(merged.begin(), merged.end(), id) > 0; };
  return std::any_of(sites.begin(), sites.end(), [&](const auto& s) { return has(s->merged); }) ||
         std::any_of(token_rows.begin(), token_rows.end(), [&](const auto& r) { return has(r.merged); });
}

bool PeftModel::Impl::any_merged() const {
  return std::any_of(sites.begin(), sites.end(), [](const auto& s) { return !s->merged.empty(); }) ||
         std::any_of(token_rows.begin(), token_rows.end(), [](const auto& r) { return !r.merged.empty(); });
}

}  // namespace peft::nn
