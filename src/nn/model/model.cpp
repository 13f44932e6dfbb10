#include "peft/nn/model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "execute/copy/render.h"
#include "model/config_json/config_section.h"
#include "nn/forward/pass.h"
#include "nn/forward/run.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/safetensors.h"
#include "peft/weights.h"

namespace peft::nn {
namespace {

struct DtypePair {
  at::ScalarType torch;
  Dtype core;
  std::string_view name;
};
constexpr DtypePair kDtypes[] = {{at::kFloat, Dtype::f32, "float32"},
                                 {at::kBFloat16, Dtype::bf16, "bfloat16"},
                                 {at::kHalf, Dtype::f16, "float16"},
                                 {at::kDouble, Dtype::f64, "float64"}};

Dtype core_dtype(at::ScalarType dtype) {
  for (const DtypePair& pair : kDtypes)
    if (pair.torch == dtype) return pair.core;
  throw Error(ErrorCode::USAGE, {.problem = "models cannot have this dtype",
                                 .expected = "float32, bfloat16, float16 or float64",
                                 .got = at::toString(dtype)});
}

at::ScalarType dtype_of(const std::optional<at::ScalarType>& wanted, const ModelConfig& config) {
  if (wanted) return core_dtype(*wanted), *wanted;
  if (config.dtype.empty()) return at::kFloat;
  for (const DtypePair& pair : kDtypes)
    if (pair.name == config.dtype) return pair.torch;
  peft::at(config.file, "dtype")
      .fail(ErrorCode::MD_FORM, {.problem = "a dtype that models cannot have here",
                                 .expected = "float32, bfloat16, float16 or float64",
                                 .got = config.dtype});
}

// "meta" (shapes without values) is allowed for init_model only: a loaded model must run.
at::Device device_of(const std::string& name, bool may_be_meta) {
  const auto refuse = [&](const char* problem) {
    peft::at({}, "device").fail(ErrorCode::USAGE, {.problem = problem, .expected = "cpu, cuda or cuda:N", .got = name});
  };
  at::Device device = at::kCPU;
  try {
    device = at::Device(name);
  } catch (const c10::Error&) {
    refuse("not a device");
  }
  if (device.is_cpu() || (may_be_meta && device.is_meta())) return device;
  if (!device.is_cuda()) refuse("not a device that models run on");
  if (!at::hasCUDA()) refuse("this libtorch or this machine has no CUDA");
  if (device.has_index() && device.index() >= at::detail::getCUDAHooks().deviceCount()) refuse("there is no such GPU");
  return device;
}

// "a, b, c and 7 more"
std::string listed(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 5;
  std::string text;
  for (std::size_t i = 0; i < std::min(kShown, names.size()); ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() <= kShown ? text : text + " and " + std::to_string(names.size() - kShown) + " more";
}

void check_complete(const std::string& folder, const ModelConfig& config, Loading& loading) {
  if (!loading.missing.empty()) {
    peft::at(folder, loading.missing.front())
        .fail(ErrorCode::MD_WEIGHTS,
              {.problem = "the checkpoint lacks tensors of the model: " + listed(loading.missing),
               .expected = "every parameter of " + config.model_type,
               .got = std::to_string(loading.missing.size()) + " missing",
               .hint = "do config.json and the weights belong together?"});
  }
  if (!loading.unexpected.empty()) {
    peft::at(folder, loading.unexpected.front())
        .fail(ErrorCode::MD_WEIGHTS,
              {.problem = "the checkpoint has tensors that the model does not have: " + listed(loading.unexpected),
               .expected = "only parameters of " + config.model_type,
               .got = std::to_string(loading.unexpected.size()) + " unexpected",
               .hint = "do config.json and the weights belong together?"});
  }
}

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

// Moves one tensor at a time, so that no more than one is in memory twice.
void move_to_device(CausalLM::Impl& model, at::Device device) {
  for (const auto& module : model.modules.all()) {
    for (const ModuleTensor& slot : module->slots) {
      if (model.tied && slot.tensor == &model.lm_head->weight) continue;
      *slot.tensor = slot.tensor->to(device);
    }
  }
  if (model.tied) model.lm_head->weight = model.embed->weight;
  model.device = device;
}

// Where the file has a tensor of its own for a tied head, it is loaded: its values decide whether the two are tied.
void give_head_its_own(CausalLM::Impl& model, const Weights& weights) {
  if (!model.tied || !weights.find(model.lm_head->name, "weight")) return;
  model.tied = false;
  model.lm_head->weight = at::empty_like(model.embed->weight);
}

// As transformers 5 does: equal values become one tensor; different values are both used, with a warning.
void tie_if_equal(CausalLM::Impl& model) {
  if (!model.config.tied || model.tied) return;
  model.tied = model.lm_head->weight.equal(model.embed->weight);
  if (model.tied) {
    model.lm_head->weight = model.embed->weight;
    return;
  }
  model.warnings.push_back(own_output_text(model.config.file));
}

void fill(CausalLM& model, const std::string& folder, const LoadOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const Weights weights(model.facts(), checkpoint);
  CausalLM::Impl& impl = model.impl();
  give_head_its_own(impl, weights);
  const std::string embedding = impl.embed->name + ".weight";
  const bool only_head = impl.config.tied && !impl.tied && !weights.find(impl.embed->name, "weight");
  std::vector<WantedParameter> wanted;
  std::map<std::string, Tensor> by_name;
  for (const auto& [name, tensor] : model.parameters()) {
    if (only_head && name == embedding) continue;  // the tied tensor under its second name alone
    wanted.push_back({name, tensor.sizes().vec(), core_dtype(tensor.scalar_type())});
    by_name.emplace(name, tensor);
  }
  Loading loading = weights.load(wanted);
  check_complete(folder, impl.config, loading);
  Plan plan;
  plan.sources = checkpoint.files();
  plan.files.push_back({.name = "model", .tensors = std::move(loading.tensors)});
  std::vector<std::span<std::byte>> destinations;
  for (PlannedTensor& tensor : plan.files[0].tensors) {
    tensor.must_be_finite = options.check_finite;
    destinations.push_back(bytes_of(by_name.at(tensor.name)));
  }
  execution::render_into(plan, 0, destinations, options.threads);
  if (only_head) impl.embed->weight.copy_(impl.lm_head->weight);
  tie_if_equal(impl);
}

}  // namespace

std::shared_ptr<CausalLM> load_model(const std::string& folder, const LoadOptions& options) {
  const at::Device device = device_of(options.device, false);
  ModelConfig config = read_config(model::read_config_facts(folder));
  const at::ScalarType dtype = dtype_of(options.dtype, config);
  auto model = std::make_shared<CausalLM>(build_network(std::move(config), dtype, at::kCPU));
  model->impl().folder = folder;
  fill(*model, folder, options);
  if (!device.is_cpu()) move_to_device(model->impl(), device);
  return model;
}

std::shared_ptr<CausalLM> init_model(const std::string& path, const InitOptions& options) {
  const at::Device device = device_of(options.device, true);
  ModelConfig config = read_config(model::read_config_facts(path));
  const at::ScalarType dtype = dtype_of(options.dtype, config);
  auto model = std::make_shared<CausalLM>(
      build_network(std::move(config), dtype, device.is_meta() ? device : at::Device(at::kCPU)));
  model->impl().folder = path;
  if (device.is_meta()) return model;
  init_weights(model->impl(), options.seed);
  if (!device.is_cpu()) move_to_device(model->impl(), device);
  return model;
}

CausalLM::CausalLM(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CausalLM::~CausalLM() = default;

void DeleteCache::operator()(Cache* cache) const { delete cache; }

CachePtr CausalLM::new_cache() const {
  CachePtr cache(new Cache);
  cache->layers.resize(impl_->layers.size());
  return cache;
}

ForwardOutput CausalLM::forward(const ForwardInput& input, const ForwardContext& context) const {
  return run_forward(*impl_, input, context);
}

Tensor CausalLM::logits(const Tensor& ids, const Tensor& mask) const {
  at::NoGradGuard no_gradients;
  return forward({.ids = ids, .mask = mask, .positions = {}}, {}).logits;
}

const std::string& CausalLM::folder() const { return impl_->folder; }
const std::string& CausalLM::model_type() const { return impl_->config.model_type; }
std::int64_t CausalLM::vocab_size() const { return impl_->config.vocab; }
std::int64_t CausalLM::expert_count() const { return impl_->config.moe.experts; }
double CausalLM::router_aux_loss_coef() const { return impl_->config.moe.aux_loss_coef; }
const std::vector<std::string>& CausalLM::warnings() const { return impl_->warnings; }
at::ScalarType CausalLM::dtype() const { return impl_->dtype; }
at::Device CausalLM::device() const { return impl_->device; }

const peft::Model& CausalLM::facts() const {
  if (!impl_->facts) impl_->facts = std::make_shared<const peft::Model>(describe({.base = impl_->folder}));
  return *impl_->facts;
}

ModuleTree CausalLM::tree() const {
  ModuleTree tree;
  for (const auto& module : impl_->modules.all()) {
    peft::Module entry{.name = module->name, .kind = module->kind, .class_name = module->class_name, .weight = {}};
    const Tensor* weight = module->find("weight");
    if (weight != nullptr) entry.weight = weight->sizes().vec();
    tree.modules.push_back(std::move(entry));
    if (module->kind != ModuleKind::other) continue;
    for (const ModuleTensor& slot : module->slots)
      tree.parameters.push_back({module->name, slot.name, slot.tensor->sizes().vec()});
  }
  tree.input_embedding = impl_->embed->name;
  tree.output_embedding = impl_->lm_head->name;
  tree.build_lookup();
  return tree;
}

std::vector<std::pair<std::string, Tensor>> CausalLM::parameters() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const auto& module : impl_->modules.all()) {
    for (const ModuleTensor& slot : module->slots) {
      const bool again = impl_->tied && slot.tensor == &impl_->lm_head->weight;
      if (!again) all.emplace_back(module->name + "." + slot.name, *slot.tensor);
    }
  }
  return all;
}

std::int64_t CausalLM::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : parameters()) count += tensor.numel();
  return count;
}

}  // namespace peft::nn
