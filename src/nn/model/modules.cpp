#include "nn/model/modules.h"

#include <ATen/ATen.h>

namespace peft::nn {

Tensor* Module::find(std::string_view parameter) const {
  for (const Slot& slot : slots)
    if (slot.name == parameter) return slot.tensor;
  return nullptr;
}

Tensor Linear::compute(const Tensor& x) const { return linear(x, weight, bias); }

Tensor Linear::forward(const Tensor& x, const ForwardContext& context) const {
  return adapter ? adapter->forward(*this, x, context) : compute(x);
}

Tensor Embedding::compute(const Tensor& ids) const { return at::embedding(weight, ids); }

Tensor Embedding::forward(const Tensor& ids, const ForwardContext& context) const {
  return adapter ? adapter->forward(*this, ids, context) : compute(ids);
}

Tensor Experts::project(const Matrix& matrix, const Tensor& x, const ExpertGroups& groups,
                        const ForwardContext& context) const {
  Tensor y = grouped_linear(x, matrix.natural(), groups);
  if (matrix.adapter) y = matrix.adapter->apply(y, x, groups, context);
  if (!matrix.bias.defined()) return y;
  return y + matrix.bias.index_select(0, groups.expert);
}

Module* Modules::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  return found == by_name_.end() ? nullptr : found->second;
}

void Modules::append(std::unique_ptr<Module> module) {
  by_name_[module->name] = module.get();
  all_.push_back(std::move(module));
}

}  // namespace peft::nn
