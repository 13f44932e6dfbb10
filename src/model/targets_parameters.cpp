#include <map>
#include <set>

#include "model/names.h"
#include "model/path.h"
#include "model/target_resolver.h"

namespace peft::model {
namespace {

constexpr AdapterConfig::Version kInvertedSwap{0, 19, 0};  // swapped exactly the wrong parameters
constexpr AdapterConfig::Version kSwapSince{0, 19, 1};

}  // namespace

// Parameters, module by module; the first one registered is the innermost wrapper.
void TargetResolver::target_parameters() {
  if (!config_.target_parameters) return;
  const std::set<std::string, std::less<>> wanted(config_.target_parameters->begin(), config_.target_parameters->end());
  std::map<std::string, std::vector<const Parameter*>, std::less<>> own;
  for (const Parameter& parameter : tree_.parameters) own[parameter.module].push_back(&parameter);
  for (const Module& module : tree_.modules) {
    std::vector<Target> found;
    const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
      const std::string full = module.name + "." + name;
      const std::string entry = matching_end(wanted, full);
      if (!entry.empty()) found.push_back(parameter_target(module, name, full, shape, entry));
    };
    if (module.kind != ModuleKind::other && !module.weight.empty()) add("weight", module.weight);
    if (const auto parameters = own.find(module.name); parameters != own.end() && module.kind == ModuleKind::other) {
      for (const Parameter* parameter : parameters->second) add(parameter->name, parameter->shape);
    }
    nest(module.name, found);
  }
  check_unlisted_norms(wanted);
}

void TargetResolver::nest(const std::string& module, std::vector<Target>& found) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    found[i].key = module;
    for (std::size_t outer = i + 1; outer < found.size(); ++outer) found[i].key += ".base_layer";
    result_.targets.push_back(std::move(found[i]));
  }
}

Target TargetResolver::parameter_target(const Module& module, const std::string& name, const std::string& full,
                                        const std::vector<std::int64_t>& shape, const std::string& entry) {
  used_.insert(entry);
  if (module_names_.contains(module.name)) {
    refuse_target("ValueError", full, "its module is a target too", "take the module out of target_modules");
  }
  check_wrapper(full);
  check_dimensions(full, shape.size());
  Target target = named_target(full, entry);
  target.parameter = true;
  target.shape = shape;
  std::int64_t experts = 1, in = shape[shape.size() - 1], out = shape[shape.size() - 2];
  if (shape.size() == 3) {
    experts = shape[0];
    if (!swaps(module.name, name)) std::swap(in, out);
  }
  std::int64_t rows = 0;
  if (__builtin_mul_overflow(target.rank, experts, &rows))
    refuse_target("ValueError", full, "rank times experts does not fit 64 bits");
  target.a = {rows, in};
  target.b = {out, rows};
  return target;
}

// What no wrapper of a parameter can do; one value in the config counts for all of them.
void TargetResolver::check_wrapper(const std::string& target) const {
  const char* what = config_.lora_dropout != 0 ? "lora_dropout"
                     : config_.fan_in_fan_out  ? "fan_in_fan_out"
                     : config_.lora_bias       ? "lora_bias"
                     : config_.use_dora        ? "use_dora"
                                               : nullptr;
  if (what != nullptr) refuse_target("ValueError", target, std::string(what) + " does not work with target_parameters");
}

void TargetResolver::check_dimensions(const std::string& target, std::size_t dimensions) const {
  if (dimensions == 2 || dimensions == 3) return;
  refuse_target(version_ >= kOwnErrorSince || dimensions > 3 ? "ValueError" : "IndexError", target,
                "a parameter of " + std::to_string(dimensions) + " dimensions; LoRA needs 2 or 3");
}

// Whether PEFT takes the last dimension of [E, d1, d2] as the input.
bool TargetResolver::swaps(const std::string& module, const std::string& name) const {
  if (version_ < kInvertedSwap) return false;
  bool transposed = false;
  if (const auto located = model_.locate(module)) {
    const ExpertsForm& form = *located->experts->form;
    for (const ExpertsForm::Fused& fused : generation_ == Generation::v4 ? form.v4 : form.v5) {
      if (fused.name == name && located->experts->fused_module(generation_, fused) == module) {
        transposed = fused.is_transposed.value_or(false);
      }
    }
  }
  return version_ >= kSwapSince ? !transposed : transposed;
}

// Tree files leave out norms. A target that names one is a vector all the same.
void TargetResolver::check_unlisted_norms(const std::set<std::string, std::less<>>& wanted) const {
  for (const std::string& entry : wanted) {
    const std::string_view module = parent(entry);
    if (used_.contains(entry) || leaf(entry) != "weight" || !is_norm_name(module)) continue;
    check_wrapper(entry);
    check_dimensions(entry, 1);
  }
}

}  // namespace peft::model
