#include "nn/lora/status.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "nn/lora/sites/hooks.h"
#include "nn/model/network.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

// Adds a value; a second, different one makes the entry irregular.
template <class T>
void join(std::map<std::string, Agreed<T>>& all, const std::string& name, const Agreed<T>& one) {
  const auto [at, added] = all.emplace(name, one);
  if (!added && (one.irregular || at->second.value != one.value)) at->second.irregular = true;
}

void join(std::vector<std::string>& sorted, const std::string& name) {
  const auto at = std::lower_bound(sorted.begin(), sorted.end(), name);
  if (at == sorted.end() || *at != name) sorted.insert(at, name);
}

// The layers of a model as PEFT's wrappers have them, in the order in which its modules are registered.
class Layers {
 public:
  explicit Layers(const PeftModel::Impl& impl) : impl_(impl) {
    const auto& modules = impl.base->impl().modules.all();
    for (std::size_t i = 0; i < modules.size(); ++i) {
      position_ = i;
      sites_of(*modules[i]);
      if (const TokenRows* rows = rows_in(*modules[i])) token_layer(modules[i]->name, *rows);
      saved(*modules[i]);
    }
  }

  std::vector<LayerStatus> sorted() && {
    // A wrapper comes before what it wraps, and its name is the shorter one.
    std::stable_sort(layers_.begin(), layers_.end(), [](const Layer& x, const Layer& y) {
      return std::pair(x.position, x.status.name.size()) < std::pair(y.position, y.status.name.size());
    });
    std::vector<LayerStatus> result;
    for (Layer& layer : layers_) result.push_back(std::move(layer.status));
    return result;
  }

 private:
  struct Layer {
    std::size_t position;
    LayerStatus status;
  };

  LayerStatus& add(const std::string& name, const std::string& type) {
    LayerStatus& status = layers_.emplace_back(Layer{position_, {}}).status;
    status.name = "model." + name, status.module_type = type;
    status.enabled = impl_.control->enabled;
    return status;
  }

  void describe(LayerStatus& status, int id, const Tensor& tensor) const {
    if (!tensor.defined()) return;
    const std::string& name = impl_.entry_of(id).name;
    join(status.available_adapters, name);
    join(status.requires_grad, name, Agreed<bool>{tensor.requires_grad(), false});
    join(status.devices[name], c10::DeviceTypeName(tensor.device().type(), true));
  }

  void sites_of(const Module& module) {
    for (const ModuleTensor& slot : module.slots) {
      const Site* site = impl_.find_site(module.name, slot.name);
      if (site == nullptr || site->adapters.empty()) continue;
      LayerStatus& status = add(impl_.key_of(*site, site->adapters.begin()->first), site->class_name());
      for (const int id : impl_.control->active) status.active_adapters.push_back(impl_.entry_of(id).name);
      for (const int id : site->merged) status.merged_adapters.push_back(impl_.entry_of(id).name);
      for (const auto& [id, f] : site->adapters) {
        for (const Tensor* tensor : {&f.stack.a, &f.stack.b, &f.bias, &f.magnitude}) describe(status, id, *tensor);
      }
    }
  }

  static const TokenRows* rows_in(const Module& module) {
    if (const auto* linear = dynamic_cast<const Linear*>(&module); linear != nullptr && linear->adapter)
      return static_cast<const LinearHook&>(*linear->adapter).rows;
    if (const auto* embedding = dynamic_cast<const Embedding*>(&module); embedding != nullptr && embedding->adapter)
      return static_cast<const EmbeddingHook&>(*embedding->adapter).rows;
    return nullptr;
  }

  // A wrapper lists the active adapters that it has.
  template <class Adapters>
  void list_active(LayerStatus& status, const Adapters& adapters) const {
    for (const int id : impl_.control->active) {
      if (adapters.contains(id)) status.active_adapters.push_back(impl_.entry_of(id).name);
    }
  }

  void token_layer(const std::string& module, const TokenRows& rows) {
    if (rows.adapters.empty()) return;
    LayerStatus& status = add(module + ".token_adapter", "TrainableTokensLayer");
    list_active(status, rows.adapters);
    for (const auto& [id, own] : rows.adapters) describe(status, id, own.delta);
    for (const int id : rows.merged) status.merged_adapters.push_back(impl_.entry_of(id).name);
  }

  // The module that PEFT copied: this one, or one above it. PEFT compares the ends of names only.
  std::string copied_by(int id, const std::string& module) const {
    const auto& saved = impl_.entry_of(id).config.modules_to_save;
    if (!saved) return module;
    for (std::size_t end = module.find('.'); end != std::string::npos; end = module.find('.', end + 1)) {
      const std::string above = module.substr(0, end);
      if (std::any_of(saved->begin(), saved->end(), [&](const auto& name) { return above.ends_with(name); }))
        return above;
    }
    return module;
  }

  void saved(const Module& module) {
    for (const Overlay& overlay : impl_.overlays) {
      if (overlay.kind != Overlay::Kind::saved_module || overlay.module != module.name) continue;
      for (const auto& [id, tensor] : overlay.adapters) {
        LayerStatus& status = wrapper(copied_by(id, module.name));
        describe(status, id, tensor);
        const auto& active = impl_.control->active;
        const bool acts = std::find(active.begin(), active.end(), id) != active.end();
        if (acts) join(status.active_adapters, impl_.entry_of(id).name);
      }
    }
  }

  LayerStatus& wrapper(const std::string& name) {
    for (Layer& layer : layers_) {
      if (layer.status.name == "model." + name && layer.status.module_type == kSaved) return layer.status;
    }
    return add(name, kSaved);
  }

  static constexpr const char* kSaved = "ModulesToSaveWrapper";
  const PeftModel::Impl& impl_;
  std::size_t position_ = 0;
  std::vector<Layer> layers_;
};

// An adapter is merged if no layer that has it says otherwise.
Agreed<std::vector<std::string>> merged_of(const std::vector<LayerStatus>& layers) {
  Agreed<std::vector<std::string>> merged;
  for (const LayerStatus& layer : layers) {
    for (const std::string& name : layer.merged_adapters) join(merged.value, name);
  }
  for (const LayerStatus& layer : layers) {
    for (const std::string& name : merged.value) {
      const auto has = [&](const std::vector<std::string>& names) {
        return std::find(names.begin(), names.end(), name) != names.end();
      };
      if (has(layer.available_adapters) && !has(layer.merged_adapters)) merged.irregular = true;
    }
  }
  return merged;
}

std::string base_class(const ModelConfig& config) {
  return config.architecture.empty() ? config.family->class_prefix + "ForCausalLM" : config.architecture;
}

}  // namespace

std::pair<std::int64_t, std::int64_t> count_parameters(const PeftModel::Impl& impl) {
  std::int64_t trainable = 0, all = impl.base->parameter_count();
  const auto count = [&](const Tensor& tensor, bool in_base) {
    if (!tensor.defined()) return;
    if (!in_base) all += tensor.numel();
    if (tensor.requires_grad()) trainable += tensor.numel();
  };
  for (const auto& site : impl.sites) {
    for (const auto& [id, f] : site->adapters) {
      for (const Tensor* tensor : {&f.stack.a, &f.stack.b, &f.bias, &f.magnitude}) count(*tensor, false);
    }
  }
  for (const Overlay& overlay : impl.overlays) {
    for (const auto& [id, tensor] : overlay.adapters) count(tensor, overlay.kind == Overlay::Kind::base_value);
  }
  for (const TokenRows& rows : impl.token_rows) {
    for (const auto& [id, own] : rows.adapters) {
      if (!own.follows) count(own.delta, false);
    }
  }
  return {trainable, all};
}

std::vector<LayerStatus> layer_status(const PeftModel::Impl& impl) {
  std::vector<LayerStatus> layers = Layers(impl).sorted();
  if (!layers.empty()) return layers;
  throw Error(ErrorCode::USAGE, {.problem = "no adapter layers: all adapters were deleted",
                                 .hint = "add_adapter or load_adapter puts some on the model"});
}

ModelStatus model_status(const PeftModel::Impl& impl) {
  const auto layers = layer_status(impl);
  ModelStatus status;
  status.base_model_type = base_class(impl.base->impl().config);
  std::tie(status.trainable_params, status.total_params) = count_parameters(impl);
  status.num_adapter_layers = static_cast<std::int64_t>(layers.size());
  status.enabled = impl.control->enabled;
  for (const AdapterEntry& entry : impl.entries) status.peft_types[entry.name] = "LORA";
  status.active_adapters.value = layers.front().active_adapters;
  status.merged_adapters = merged_of(layers);
  for (const LayerStatus& layer : layers) {
    if (layer.active_adapters != status.active_adapters.value) status.active_adapters.irregular = true;
    for (const std::string& name : layer.available_adapters) join(status.available_adapters, name);
    for (const auto& [name, value] : layer.requires_grad) join(status.requires_grad, name, value);
    for (const auto& [name, devices] : layer.devices) {
      for (const std::string& device : devices) join(status.devices[name], device);
    }
  }
  return status;
}

}  // namespace peft::nn
