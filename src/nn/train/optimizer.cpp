#include "peft/nn/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "peft/error.h"

namespace peft::nn {
namespace {

using at::Tensor;

at::ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

const Tensor& found_in(const std::map<std::string, const Tensor*>& state, const std::string& name,
                       at::IntArrayRef shape) {
  const auto found = state.find(name);
  if (found == state.end()) {
    at({}, name).fail(ErrorCode::RS_JOURNAL, {.problem = "the optimiser's state has no such tensor"});
  }
  if (found->second->sizes() != shape) {
    at({}, name).fail(ErrorCode::RS_JOURNAL, {.problem = "the optimiser's state has another shape",
                                              .expected = c10::str(shape),
                                              .got = c10::str(found->second->sizes())});
  }
  return *found->second;
}

}  // namespace

AdamW::AdamW(const std::vector<AdapterTensor>& tensors, const AdamWOptions& options,
             const std::vector<double>& rate_factors)
    : options_(options) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i].tensor;
    if (!tensor.requires_grad()) continue;
    const auto like = tensor.options().dtype(wide_type(tensor)).requires_grad(false);
    Slot& slot = slots_.emplace_back();
    slot.key = tensors[i].key, slot.tensor = tensor;
    slot.exp_avg = at::zeros(tensor.sizes(), like), slot.exp_avg_sq = at::zeros(tensor.sizes(), like);
    if (!rate_factors.empty()) slot.rate_factor = rate_factors[i];
  }
}

// The order of operations is torch's, so that a step rounds as there.
void AdamW::update(Slot& slot, double learning_rate) const {
  const auto type = wide_type(slot.tensor);
  const bool same = slot.tensor.scalar_type() == type;
  Tensor value = same ? slot.tensor.detach() : slot.tensor.detach().to(type);
  const Tensor gradient = slot.tensor.grad().to(type);
  const double rate = learning_rate * slot.rate_factor;
  const auto steps = static_cast<double>(++slot.steps);
  value.mul_(1 - rate * options_.weight_decay);
  slot.exp_avg.lerp_(gradient, 1 - options_.beta1);
  slot.exp_avg_sq.mul_(options_.beta2).addcmul_(gradient, gradient, 1 - options_.beta2);
  const double correction1 = 1 - std::pow(options_.beta1, steps), correction2 = 1 - std::pow(options_.beta2, steps);
  const Tensor root = slot.exp_avg_sq.sqrt().div_(std::sqrt(correction2)).add_(options_.epsilon);
  value.addcdiv_(slot.exp_avg, root, -(rate / correction1));
  if (!same) slot.tensor.detach().copy_(value);
}

void AdamW::step(double learning_rate) {
  const at::NoGradGuard no_gradients;
  for (Slot& slot : slots_) {
    if (slot.tensor.grad().defined()) update(slot, learning_rate);
  }
}

void AdamW::zero_grad() {
  for (Slot& slot : slots_) slot.tensor.mutable_grad().reset();
}

std::vector<std::pair<std::string, Tensor>> AdamW::state() const {
  std::vector<std::pair<std::string, Tensor>> state;
  Tensor steps = at::empty({static_cast<std::int64_t>(slots_.size())}, at::kLong);
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    steps.mutable_data_ptr<std::int64_t>()[i] = slots_[i].steps;
    state.emplace_back("exp_avg." + slots_[i].key, slots_[i].exp_avg);
    state.emplace_back("exp_avg_sq." + slots_[i].key, slots_[i].exp_avg_sq);
  }
  state.emplace_back("step", steps);
  return state;
}

void AdamW::load_state(const std::vector<std::pair<std::string, Tensor>>& state) {
  std::map<std::string, const Tensor*> given;
  for (const auto& [name, tensor] : state) given[name] = &tensor;
  const Tensor& steps = found_in(given, "step", {static_cast<std::int64_t>(slots_.size())});
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    slot.exp_avg.copy_(found_in(given, "exp_avg." + slot.key, slot.exp_avg.sizes()));
    slot.exp_avg_sq.copy_(found_in(given, "exp_avg_sq." + slot.key, slot.exp_avg_sq.sizes()));
    slot.steps = steps[static_cast<std::int64_t>(i)].item<std::int64_t>();
  }
}

std::vector<double> loraplus_factors(const std::vector<AdapterTensor>& tensors, double ratio, double embedding_rate,
                                     double learning_rate) {
  std::vector<double> factors;
  for (const AdapterTensor& t : tensors) {
    double factor = 1;
    if (t.key.find(".lora_embedding_") != std::string::npos)
      factor = learning_rate > 0 ? embedding_rate / learning_rate : 1;
    else if (t.key.find("lora_B") != std::string::npos || t.tensor.dim() == 1)
      factor = ratio;
    factors.push_back(factor);
  }
  return factors;
}

double clip_gradients(const std::vector<Tensor>& tensors, double max_norm) {
  const at::NoGradGuard no_gradients;
  std::vector<Tensor> norms;
  for (const Tensor& tensor : tensors) {
    if (tensor.grad().defined()) norms.push_back(at::linalg_vector_norm(tensor.grad().to(wide_type(tensor))));
  }
  if (norms.empty()) return 0;
  for (Tensor& norm : norms) norm = norm.to(norms.front().device(), norms.front().scalar_type());
  const double total = at::linalg_vector_norm(at::stack(norms)).item<double>();
  const double factor = max_norm / (total + 1e-6);
  if (max_norm > 0 && factor < 1) {
    for (const Tensor& tensor : tensors) {
      if (tensor.grad().defined()) tensor.grad().mul_(factor);
    }
  }
  return total;
}

}  // namespace peft::nn
