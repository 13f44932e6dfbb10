#include "weights/tensor_names.h"

#include <functional>

#include "model/index.h"
#include "model/path.h"
#include "model/same_prefixes.h"
#include "peft/error.h"

namespace peft::weights {
namespace {

const model::Family* family_of(const Model& model) { return model.index ? model.index->family.get() : nullptr; }

bool is_known(const Model& model, const std::string& module) {
  return model.index && model.index->find_known(Generation::v5, module) != nullptr;
}

std::string joined(const std::string& module, const std::string& parameter) {
  return module.empty() ? parameter : module + "." + parameter;
}

}  // namespace

std::size_t TensorNameHash::operator()(const TensorName& name) const {
  const std::hash<std::string_view> text;
  std::size_t hash = text(name.module);
  for (const std::size_t part :
       {text(name.parameter), static_cast<std::size_t>(name.expert + 1), static_cast<std::size_t>(name.projection)}) {
    hash ^= part + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
  }
  return hash;
}

TensorNames::TensorNames(const Model& model, const Checkpoint& checkpoint) : model_(model), disk_(family_of(model)) {
  const auto& tensors = checkpoint.tensors();
  names_.reserve(tensors.size());
  by_name_.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    names_.push_back(parse(std::string(tensors[i].tensor->name)));
    add(names_.back(), i);
  }
  // A tensor is also found under its own name, unless another tensor has that name.
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].tensor->name;
    add({std::string(model::parent(name)), std::string(model::leaf(name))}, i);
  }
}

// Finds experts in the spelling of either generation; also "….input_linear.weight", another name of all experts
// together.
bool TensorNames::locate(const std::string& module, const std::string& parameter, TensorName& name) const {
  const auto located = model_.locate(module);
  if (!located) return false;
  name = {experts_module(*located->experts), parameter, located->expert, located->projection};
  // A module of one parameter stands for itself: its sibling has a parameter of the same name.
  if (located->expert < 0 && located->fused != nullptr) name.module = module;
  return true;
}

TensorName TensorNames::parse(const std::string& name) const {
  const std::string module(model::parent(name)), parameter(model::leaf(name));
  TensorName result{module, parameter};
  try {
    if (locate(module, parameter, result)) return result;
    if (is_known(model_, module)) return result;
    const std::string renamed = model_.rename(module, Generation::v4, Generation::v5);
    if (renamed != module && is_known(model_, renamed)) return {renamed, parameter};
    const std::string ruled = disk_.to_v5(name);
    if (ruled == name) return {renamed, parameter};
    result = {std::string(model::parent(ruled)), std::string(model::leaf(ruled))};
    TensorName experts;
    if (locate(result.module, result.parameter, experts)) return experts;
    return renamed == module || is_known(model_, result.module) ? result : TensorName{renamed, parameter};
  } catch (const Error&) {
    return {module, parameter};  // an expert that the config does not have: an unexpected tensor, not an error
  }
}

std::optional<std::size_t> TensorNames::find(const TensorName& name) const {
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) return found->second;
  if (name.expert >= 0 && name.projection != Projection::none) return std::nullopt;
  for (const std::string& other : disk_.other_prefixes(joined(name.module, name.parameter))) {
    const auto again = by_name_.find(TensorName{std::string(model::parent(other)), std::string(model::leaf(other))});
    if (again != by_name_.end()) return again->second;
  }
  for (const std::string& other : model::other_names(model_, name.module)) {
    const auto again = by_name_.find(TensorName{other, name.parameter});
    if (again != by_name_.end()) return again->second;
  }
  return std::nullopt;
}

}  // namespace peft::weights
