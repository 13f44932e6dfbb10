#include "peft/nn/peft_model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <map>

#include "nn/lora/create.h"
#include "nn/lora/files/factors.h"
#include "nn/lora/files/load.h"
#include "nn/lora/files/save.h"
#include "nn/lora/merge.h"
#include "nn/lora/status.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/model.h"

namespace peft::nn {
namespace {

std::unique_ptr<PeftModel::Impl> new_impl(std::shared_ptr<CausalLM> base) {
  // A module has one hook: a second PeftModel would take the first one's, and its adapters would do nothing.
  if (base->impl().has_adapters) {
    throw Error(ErrorCode::USAGE, {.problem = "the base has a PeftModel already",
                                   .expected = "one PeftModel for each base",
                                   .hint = "add_adapter and load_adapter put several adapters on one"});
  }
  auto impl = std::make_unique<PeftModel::Impl>();
  impl->model = base->facts();
  impl->tree = base->tree();
  impl->base = std::move(base);
  impl->base->impl().has_adapters = true;
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : impl->base->parameters()) {
    Tensor frozen = tensor;
    frozen.requires_grad_(false);
  }
  return impl;
}

void require_unmerged(const PeftModel::Impl& impl, const std::string& what) {
  if (!impl.any_merged()) return;
  at({}).fail(ErrorCode::USAGE,
              {.problem = what + " while adapters are merged into the weights", .hint = "unmerge_adapter() first"});
}

const ErrorPlace kNames = at({}, "adapter_names");

// A replaced tensor can be mixed where a hook computes with it: weights of Linear and Embedding modules.
void require_mixable(const PeftModel::Impl& impl, int id) {
  for (const Overlay& overlay : impl.overlays) {
    const Module* owner = impl.base->impl().modules.find(overlay.module);
    const bool hooked =
        overlay.parameter == "weight" && overlay.kind == Overlay::Kind::saved_module &&
        (dynamic_cast<const Linear*>(owner) != nullptr || dynamic_cast<const Embedding*>(owner) != nullptr);
    if (hooked || !overlay.adapters.contains(id)) continue;
    kNames.fail(ErrorCode::USAGE, {.problem = "adapter \"" + impl.entry_of(id).name + "\" replaces " + overlay.module +
                                              "." + overlay.parameter + ", which cannot be mixed within a batch",
                                   .expected = "adapters that replace weights of Linear and Embedding modules only",
                                   .got = impl.entry_of(id).name,
                                   .hint = "run its sequences in a batch of their own"});
  }
}

// Overlays are put aside for the time of a mixed batch: the hooks see to them row by row.
class Mixed {
 public:
  Mixed(PeftModel::Impl& impl, const RunOptions& options, const Tensor& ids) : impl_(impl) {
    context.training = options.training;
    if (!impl.control->enabled && impl.any_merged()) unmerge_adapters(impl);  // merged while disabled: the base answers
    if (options.adapter_names.empty()) return;
    if (options.training)
      kNames.fail(
          ErrorCode::USAGE,
          {.problem = "mixed batches are for inference", .expected = "training = false", .got = "training = true"});
    if (impl.any_merged())
      kNames.fail(ErrorCode::USAGE, {.problem = "an adapter is merged into the weights",
                                     .expected = "none",
                                     .got = "merged",
                                     .hint = "unmerge_adapter() first"});
    if (static_cast<std::int64_t>(options.adapter_names.size()) != ids.size(0)) {
      kNames.fail(ErrorCode::USAGE, {.problem = "one name for each sequence is needed",
                                     .expected = std::to_string(ids.size(0)),
                                     .got = std::to_string(options.adapter_names.size())});
    }
    for (const std::string& name : options.adapter_names) {
      const int id = name == base_name ? -1 : impl.entry(name).id;
      if (id >= 0) require_mixable(impl, id);
      context.adapter_of_sequence.push_back(id);
    }
    mixed_ = impl.control->enabled;
    if (!mixed_)
      context.adapter_of_sequence.clear();
    else
      impl_.select_overlays({});
  }
  ~Mixed() {
    if (mixed_) impl_.select_overlays(impl_.control->active);
  }
  Mixed(const Mixed&) = delete;

  ForwardContext context;

 private:
  const PeftModel::Impl& impl_;
  bool mixed_ = false;
};

}  // namespace

PeftModel::PeftModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PeftModel::~PeftModel() {
  if (impl_ && impl_->base) impl_->remove_hooks();
}

PeftModel::Impl& PeftModel::live() const {
  if (impl_->base != nullptr) return *impl_;
  throw Error(ErrorCode::USAGE, {.problem = "the model was unloaded: its adapters are no longer on the base",
                                 .hint = "get_peft_model() or PeftModel::from_pretrained() puts some on again"});
}

std::unique_ptr<PeftModel> PeftModel::from_pretrained(std::shared_ptr<CausalLM> base, const std::string& folder,
                                                      const AdapterModelOptions& options) {
  auto model = std::make_unique<PeftModel>(new_impl(std::move(base)));
  load_adapter_folder(*model->impl_, options.adapter_name, folder, options);
  model->set_adapter(options.adapter_name, !options.is_trainable);
  return model;
}

std::unique_ptr<PeftModel> get_peft_model(std::shared_ptr<CausalLM> base, const LoraConfig& config,
                                          const AdapterModelOptions& options) {
  auto model = std::make_unique<PeftModel>(new_impl(std::move(base)));
  model->add_adapter(options.adapter_name, config, options);
  model->set_adapter(options.adapter_name, config.value("inference_mode") == "true");
  return model;
}

void PeftModel::save_pretrained(const std::string& folder, const SaveOptions& options) const {
  save_adapters(live(), folder, options);
}

void PeftModel::load_adapter(const std::string& folder, const std::string& name, AdapterModelOptions options) {
  require_unmerged(live(), "an adapter cannot be loaded");
  load_adapter_folder(*impl_, name, folder, options);
}

void PeftModel::add_adapter(const std::string& name, const LoraConfig& config, AdapterModelOptions options) {
  require_unmerged(live(), "an adapter cannot be added");
  create_adapter(*impl_, name, config, options);
}

void PeftModel::set_adapter(const std::string& name, bool inference_mode) {
  set_adapter(std::vector<std::string>{name}, inference_mode);
}

void PeftModel::set_adapter(const std::vector<std::string>& names, bool inference_mode) {
  std::vector<int> ids;
  for (const std::string& name : names) {
    const int id = live().entry(name).id;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  if (impl_->any_merged()) {
    impl_->warnings.emplace_back(
        "the adapter was changed while one was merged: that one was taken out of the weights first");
    unmerge_adapters(*impl_);
  }
  for (const Overlay& overlay : impl_->overlays) {
    const auto own = std::count_if(ids.begin(), ids.end(), [&](int id) { return overlay.adapters.contains(id); });
    if (own > 1) {
      at({}, overlay.module + "." + overlay.parameter)
          .fail(ErrorCode::USAGE, {.problem = "several of the adapters replace this tensor of the base",
                                   .expected = "at most one",
                                   .got = fmt::format("{}", fmt::join(names, ", "))});
    }
  }
  require_rows_disjoint(*impl_, ids);
  impl_->activate(std::move(ids), !inference_mode);
}

void PeftModel::set_requires_grad(const std::string& name, bool requires_grad) {
  set_requires_grad(std::vector<std::string>{name}, requires_grad);
}

void PeftModel::set_requires_grad(const std::vector<std::string>& names, bool requires_grad) {
  std::vector<int> ids;
  for (const std::string& name : names) ids.push_back(live().entry(name).id);
  for (const int id : ids) impl_->set_gradients(id, requires_grad);
}

void PeftModel::delete_adapter(const std::string& name) {
  const int id = live().entry(name).id;
  if (impl_->is_merged(id)) {
    at({}, name).fail(ErrorCode::USAGE, {.problem = "the adapter is merged into the weights and cannot be deleted",
                                         .hint = "unmerge_adapter() first"});
  }
  const auto& acting = impl_->control->active;
  const bool acted = std::find(acting.begin(), acting.end(), id) != acting.end();
  impl_->forget(id);
  if (!acted) return;
  std::vector<int> active = acting;
  if (active.empty() && !impl_->entries.empty()) {
    const auto first = std::min_element(impl_->entries.begin(), impl_->entries.end(),
                                        [](const auto& x, const auto& y) { return x.name < y.name; });
    impl_->warnings.push_back("the active adapter was deleted; \"" + first->name + "\" is active now");
    active = {first->id};
  }
  impl_->activate(std::move(active), true);
}

void PeftModel::add_weighted_adapter(const std::vector<std::string>& adapters, const std::vector<double>& weights,
                                     const std::string& name, const WeightedOptions& options) {
  combine_adapters(live(), adapters, weights, name, options);
}

PeftModel::DisabledAdapters::DisabledAdapters(PeftModel& model)
    : model_(model.impl_), was_enabled_(model.live().control->enabled) {
  if (model.impl_->any_merged()) unmerge_adapters(*model.impl_);
  model.impl_->control->enabled = false;
  model.impl_->select_overlays({});
}

PeftModel::DisabledAdapters::~DisabledAdapters() {
  const std::shared_ptr<Impl> model = model_.lock();
  if (model == nullptr || model->base == nullptr) return;  // the base is its owner's again
  model->control->enabled = was_enabled_;
  if (was_enabled_) model->select_overlays(model->control->active);
}

namespace {

std::vector<int> ids_to_merge(PeftModel::Impl& impl, const MergeOptions& options) {
  if (options.adapter_names.empty()) return impl.control->active;
  std::vector<int> ids;
  for (const std::string& name : options.adapter_names) ids.push_back(impl.entry(name).id);
  return ids;
}

}  // namespace

void PeftModel::merge_adapter(const MergeOptions& options) {
  merge_adapters(live(), options, ids_to_merge(*impl_, options));
}

void PeftModel::unmerge_adapter() {
  if (!live().any_merged()) impl_->warnings.emplace_back("Already unmerged. Nothing to do.");
  unmerge_adapters(*impl_);
}

std::shared_ptr<CausalLM> PeftModel::merge_and_unload(const MergeOptions& options) {
  const at::NoGradGuard no_grad;
  MergeOptions final = options;
  final.keep_base = false;
  const std::vector<int> ids = ids_to_merge(live(), options);
  if (!impl_->any_merged()) impl_->select_overlays(ids);  // LoRA is added to what these adapters put there
  merge_adapters(*impl_, final, ids);
  for (Overlay& overlay : impl_->overlays) overlay.original = *overlay.places.front();  // what they replaced stays
  stay_untied(*impl_);
  impl_->remove_hooks();
  return std::exchange(impl_->base, nullptr);
}

std::shared_ptr<CausalLM> PeftModel::unload() {
  unmerge_adapters(live());
  impl_->remove_hooks();
  return std::exchange(impl_->base, nullptr);
}

const std::shared_ptr<CausalLM>& PeftModel::base() const { return impl_->base; }
const std::vector<std::string>& PeftModel::warnings() const { return impl_->warnings; }
const LoraConfig& PeftModel::peft_config(const std::string& name) const { return impl_->entry(name).config; }

std::vector<std::string> PeftModel::adapter_names() const {
  std::vector<std::string> names;
  for (const AdapterEntry& entry : impl_->entries) names.push_back(entry.name);
  return names;
}

std::vector<std::string> PeftModel::active_adapters() const {
  std::vector<std::string> names;
  for (const int id : impl_->control->active) names.push_back(impl_->entry_of(id).name);
  return names;
}

std::vector<AdapterTensor> PeftModel::adapter_tensors(const std::string& name) const {
  return tensors_of(live(), impl_->entry(name));
}

std::vector<std::pair<std::string, Tensor>> PeftModel::state_dict(const std::string& name) const {
  std::vector<std::pair<std::string, Tensor>> state;
  for (const AdapterTensor& tensor : adapter_tensors(name)) {
    state.emplace_back(tensor.key, tensor.in_file_form(tensor.tensor.detach()));
  }
  return state;
}

void PeftModel::load_state_dict(const std::vector<std::pair<std::string, Tensor>>& state, const std::string& name) {
  const at::NoGradGuard no_grad;
  std::map<std::string, const Tensor*> given;
  for (const auto& [key, tensor] : state) given[key] = &tensor;
  const std::vector<AdapterTensor> tensors = adapter_tensors(name);
  std::vector<std::pair<Tensor, Tensor>> copies;  // all is checked before anything changes
  for (const AdapterTensor& own : tensors) {
    const auto found = given.find(own.key);
    if (found == given.end()) {
      throw Error(ErrorCode::LO_MISSING, {.tensor = own.key, .problem = "the state has no such tensor"});
    }
    const auto shape = own.in_file_form(own.tensor).sizes();
    if (found->second->sizes() != shape) {
      throw Error(ErrorCode::LO_SHAPE, {.tensor = own.key,
                                        .problem = "the state's tensor has another shape",
                                        .expected = fmt::format("[{}]", fmt::join(shape, ", ")),
                                        .got = fmt::format("[{}]", fmt::join(found->second->sizes(), ", "))});
    }
    copies.emplace_back(own.tensor, own.from_file_form(*found->second));
    given.erase(found);
  }
  if (!given.empty()) {
    throw Error(ErrorCode::LO_UNUSED,
                {.tensor = given.begin()->first, .problem = "adapter \"" + name + "\" has no such tensor"});
  }
  for (auto& [to, from] : copies) to.copy_(from);
}

std::vector<Tensor> PeftModel::trainable_parameters() const {
  std::vector<Tensor> parameters;
  for (const AdapterEntry& entry : live().entries) {
    for (const AdapterTensor& tensor : tensors_of(*impl_, entry)) {
      if (tensor.tensor.requires_grad()) parameters.push_back(tensor.tensor);
    }
  }
  return parameters;
}

Tensor PeftModel::get_delta_weight(const std::string& parameter, const std::string& name) const {
  const at::NoGradGuard no_grad;
  const int id = live().entry(name).id;
  const auto site = impl_->site_by_name.find(parameter);
  const SiteFactors* factors = site == impl_->site_by_name.end() ? nullptr : site->second->find(id);
  if (factors == nullptr) {
    at({}, parameter)
        .fail(ErrorCode::LO_TARGET, {.problem = "adapter \"" + name + "\" has no LoRA on this parameter",
                                     .hint = "names are full: model.layers.0.self_attn.q_proj.weight"});
  }
  return delta_weight(*site->second, *factors);
}

ForwardOutput PeftModel::forward(const ForwardInput& input, const RunOptions& options) const {
  const Mixed mixed(live(), options, input.ids);
  return impl_->base->forward(input, mixed.context);
}

Tensor PeftModel::logits(const Tensor& ids, const Tensor& mask, const RunOptions& options) const {
  const at::NoGradGuard no_grad;
  ForwardInput input;
  input.ids = ids, input.mask = mask;
  return forward(input, options).logits;
}

std::vector<std::vector<std::int64_t>> PeftModel::generate(const Tensor& ids, const Tensor& mask,
                                                           const GenerateOptions& options,
                                                           const RunOptions& run) const {
  const Mixed mixed(live(), run, ids);
  return nn::generate(*impl_->base, ids, mask, options, mixed.context);
}

std::pair<std::int64_t, std::int64_t> PeftModel::get_nb_trainable_parameters() const {
  return count_parameters(live());
}

std::string PeftModel::trainable_parameters_line() const {
  const auto [trainable, all] = get_nb_trainable_parameters();
  return trainable_line(trainable, all);
}

void PeftModel::print_trainable_parameters(std::ostream& out) const { out << trainable_parameters_line() << std::endl; }
void PeftModel::print_trainable_parameters() const { print_trainable_parameters(std::cout); }

std::vector<LayerStatus> PeftModel::get_layer_status() const { return layer_status(live()); }
ModelStatus PeftModel::get_model_status() const { return model_status(live()); }

}  // namespace peft::nn
