// What PEFT tells about a model with adapters: counts and states.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <set>

#include "nn/lora/impl.h"
#include "peft/targets.h"

namespace peft::nn {
namespace {

std::string device_name(const Tensor& tensor) { return tensor.device().str(); }

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

// What several layers say of one adapter; PEFT says "irregular" where they differ, we say what the first says.
template <class T>
void join(std::map<std::string, T>& all, const std::map<std::string, T>& one) {
  for (const auto& [name, value] : one) all.emplace(name, value);
}

std::vector<std::string> names_of(const PeftModel::Impl& impl, const std::vector<int>& ids) {
  std::vector<std::string> names;
  for (const int id : ids) names.push_back(impl.entry_of(id).name);
  return names;
}

void describe_tensor(const PeftModel::Impl& impl, LayerStatus& status, int id, const Tensor& tensor) {
  const std::string& name = impl.entry_of(id).name;
  if (std::find(status.available_adapters.begin(), status.available_adapters.end(), name) ==
      status.available_adapters.end()) {
    status.available_adapters.push_back(name);
  }
  status.requires_grad[name] = tensor.requires_grad();
  auto& devices = status.devices[name];
  const std::string device = device_name(tensor);
  if (std::find(devices.begin(), devices.end(), device) == devices.end()) devices.push_back(device);
}

LayerStatus blank(const PeftModel::Impl& impl, const std::string& name, const std::string& type) {
  LayerStatus status;
  status.name = name, status.module_type = type;
  status.enabled = impl.control->enabled;
  status.active_adapters = names_of(impl, impl.control->active);
  return status;
}

}  // namespace

std::pair<std::int64_t, std::int64_t> PeftModel::get_nb_trainable_parameters() const {
  std::int64_t trainable = 0, all = impl_->base->parameter_count();
  const auto count = [&](const Tensor& tensor, bool in_base) {
    if (!tensor.defined()) return;
    if (!in_base) all += tensor.numel();
    if (tensor.requires_grad()) trainable += tensor.numel();
  };
  for (const auto& site : impl_->sites) {
    for (const auto& [id, f] : site->adapters) {
      for (const Tensor* tensor : {&f.stack.a, &f.stack.b, &f.bias, &f.magnitude}) count(*tensor, false);
    }
  }
  for (const Overlay& overlay : impl_->overlays) {
    for (const auto& [id, tensor] : overlay.adapters) count(tensor, overlay.kind == Overlay::Kind::base_value);
  }
  for (const TokenRows& rows : impl_->token_rows) {
    for (const auto& [id, own] : rows.adapters) {
      if (!own.follows) count(own.delta, false);
    }
  }
  return {trainable, all};
}

std::string PeftModel::trainable_parameters_line() const {
  const auto [trainable, all] = get_nb_trainable_parameters();
  return trainable_line(trainable, all);
}

void PeftModel::print_trainable_parameters(std::ostream& out) const { out << trainable_parameters_line() << std::endl; }
void PeftModel::print_trainable_parameters() const { print_trainable_parameters(std::cout); }

std::vector<LayerStatus> PeftModel::get_layer_status() const {
  std::vector<LayerStatus> layers;
  for (const auto& site : impl_->sites) {
    if (site->adapters.empty()) continue;
    const std::string key = site->by_parameter ? impl_->key_of(*site, site->adapters.begin()->first) : site->module;
    LayerStatus status = blank(*impl_, "model." + key, site->class_name());
    status.merged_adapters = names_of(*impl_, site->merged);
    for (const auto& [id, factors] : site->adapters) describe_tensor(*impl_, status, id, factors.stack.a);
    layers.push_back(std::move(status));
  }
  std::set<std::string> seen;
  for (const Overlay& overlay : impl_->overlays) {
    if (overlay.kind != Overlay::Kind::saved_module || overlay.adapters.empty()) continue;
    if (!seen.insert(overlay.module).second) continue;
    LayerStatus status = blank(*impl_, "model." + overlay.module, "auxiliary.ModulesToSaveWrapper");
    for (const auto& [id, tensor] : overlay.adapters) describe_tensor(*impl_, status, id, tensor);
    layers.push_back(std::move(status));
  }
  for (const TokenRows& rows : impl_->token_rows) {
    if (rows.adapters.empty()) continue;
    LayerStatus status = blank(*impl_, "model." + rows.module, "auxiliary.TrainableTokensWrapper");
    for (const auto& [id, own] : rows.adapters) describe_tensor(*impl_, status, id, own.delta);
    layers.push_back(std::move(status));
  }
  for (LayerStatus& status : layers) status.available_adapters = sorted(std::move(status.available_adapters));
  return layers;
}

ModelStatus PeftModel::get_model_status() const {
  ModelStatus status;
  const auto layers = get_layer_status();
  status.base_model_type = impl_->base->model_type();
  std::tie(status.trainable_params, status.total_params) = get_nb_trainable_parameters();
  status.num_adapter_layers = static_cast<std::int64_t>(layers.size());
  status.enabled = impl_->control->enabled;
  status.active_adapters = active_adapters();
  status.available_adapters = sorted(adapter_names());
  for (const AdapterEntry& entry : impl_->entries) status.peft_types[entry.name] = "LORA";
  std::set<std::string> merged;
  for (const LayerStatus& layer : layers) {
    merged.insert(layer.merged_adapters.begin(), layer.merged_adapters.end());
    join(status.requires_grad, layer.requires_grad);
    join(status.devices, layer.devices);
  }
  status.merged_adapters.assign(merged.begin(), merged.end());
  return status;
}

}  // namespace peft::nn
