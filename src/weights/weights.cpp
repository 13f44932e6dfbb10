#include "peft/weights.h"

#include <algorithm>
#include <set>

#include "base/text.h"
#include "weights/impl.h"

namespace peft {

using weights::experts_module;
using weights::TensorName;

namespace {

bool is_stored_turned(std::optional<ModuleKind> kind) {
  return kind == ModuleKind::conv1d || kind == ModuleKind::embedding;
}

Weight single(WeightPart part) {
  Weight weight{part.view.rows, part.view.cols, {}};
  weight.parts.push_back(std::move(part));
  return weight;
}

}  // namespace

Weights::Weights(const Model& model, const Checkpoint& checkpoint) : impl_(std::make_unique<Impl>(model, checkpoint)) {}
Weights::~Weights() = default;
Weights::Weights(Weights&&) noexcept = default;

std::optional<Weight> Weights::find(std::string_view module, std::string_view parameter) const {
  auto part = impl_->whole({std::string(module), std::string(parameter)}, false);
  if (!part) return std::nullopt;
  return single(std::move(*part));
}

std::optional<Weight> Weights::find(const Site& site) const {
  if (site.expert >= 0 && site.projection != Projection::none) {
    const Experts* experts = impl_->experts_at(site.module);
    if (experts == nullptr) return std::nullopt;
    if (site.parameter == "bias") return impl_->expert_bias(*experts, site.expert, site.projection);
    return impl_->expert(*experts, site.expert, site.projection);
  }
  const std::string parameter = site.parameter.empty() ? "weight" : site.parameter;
  auto part = impl_->whole({site.module, parameter}, site.parameter.empty());
  if (!part) return impl_->pieces({site.module, parameter});
  if (site.expert >= 0) {  // one expert of a parameter that is no projection: [E, d1, d2]
    const auto shape = impl_->tensor(*part).shape;
    if (shape.size() != 3 || site.expert >= shape[0]) return std::nullopt;
    part->view = part->view.row_range(site.expert * shape[1], shape[1]);
  }
  if (site.parameter.empty()) {
    auto kind = impl_->model.kind(Generation::v5, site.module);
    if (!kind) {
      kind = impl_->model.kind(Generation::v4, impl_->model.rename(site.module, Generation::v5, Generation::v4));
    }
    if (is_stored_turned(kind)) part->view = part->view.transposed();
  }
  return single(std::move(*part));
}

std::vector<QuantizedTensor> Weights::quantized() const {
  constexpr std::string_view kBlocks = "_blocks";
  std::vector<QuantizedTensor> found;
  for (std::size_t i = 0; i < impl_->checkpoint.tensors().size(); ++i) {
    const std::string own(impl_->checkpoint.tensors()[i].tensor->name);
    const TensorName& name = impl_->names.name(i);
    if (name.parameter.ends_with(kBlocks)) {
      auto tensor = impl_->packed(name.module, name.parameter.substr(0, name.parameter.size() - kBlocks.size()));
      if (!tensor || tensor->codes.name != own) continue;
      tensor->name = own.substr(0, own.size() - kBlocks.size());
      found.push_back(std::move(*tensor));
    } else if (auto part = impl_->whole(name, false); part && part->scales && part->name == own) {
      const auto shape = impl_->tensor(*part).shape;
      QuantizedTensor tensor{own, {shape.begin(), shape.end()}, {{0, 0, 1, part->view, 1, part->scales}}, {}, false};
      tensor.codes = std::move(*part);
      found.push_back(std::move(tensor));
    }
  }
  return found;
}

std::vector<std::string> Weights::near(const std::string& module) const {
  std::set<std::string> modules;
  for (std::size_t i = 0; i < impl_->checkpoint.tensors().size(); ++i) modules.insert(impl_->names.name(i).module);
  const std::vector<std::string> list(modules.begin(), modules.end());
  return near_names(module, list);
}

}  // namespace peft
