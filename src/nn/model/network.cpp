#include "nn/model/network.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "base/system.h"

namespace peft::nn {
namespace {

// The vision tower of a composite model: it is counted, adapted, saved and loaded; nothing runs it yet.
class VisionBuilder {
 public:
  VisionBuilder(Modules& modules, at::TensorOptions options) : modules_(modules), options_(options) {}

  void affine(const std::string& name, const char* class_name, ModuleKind kind, std::vector<std::int64_t> shape,
              std::int64_t bias) {
    Plain* module = modules_.add<Plain>(name, class_name, kind);
    module->first = at::empty(shape, options_), module->second = at::empty({bias}, options_);
    module->slots = {{"weight", &module->first}, {"bias", &module->second}};
  }

  void norm(const std::string& name, std::int64_t size) { affine(name, "LayerNorm", ModuleKind::other, {size}, size); }

  void linear(const std::string& name, std::int64_t in, std::int64_t out) {
    Linear* module = modules_.add<Linear>(name, "Linear", ModuleKind::linear);
    module->weight = at::empty({out, in}, options_), module->bias = at::empty({out}, options_);
    module->slots = {{"weight", &module->weight}, {"bias", &module->bias}};
  }

  void embedding(const std::string& name, std::int64_t rows, std::int64_t features) {
    Embedding* module = modules_.add<Embedding>(name, "Embedding", ModuleKind::embedding);
    module->weight = at::empty({rows, features}, options_);
    module->slots = {{"weight", &module->weight}};
  }

 private:
  Modules& modules_;
  at::TensorOptions options_;
};

// The modules below "model.visual".
void build_vision(Modules& modules, const VisionConfig& v, at::TensorOptions options) {
  VisionBuilder builder(modules, options);
  builder.affine("model.visual.patch_embed.proj", "Conv3d", ModuleKind::conv,
                 {v.hidden, v.channels, v.temporal_patch, v.patch, v.patch}, v.hidden);
  builder.embedding("model.visual.pos_embed", v.positions, v.hidden);
  for (std::int64_t i = 0; i < v.depth; ++i) {
    const std::string block = "model.visual.blocks." + std::to_string(i);
    builder.norm(block + ".norm1", v.hidden);
    builder.norm(block + ".norm2", v.hidden);
    builder.linear(block + ".attn.qkv", v.hidden, 3 * v.hidden);
    builder.linear(block + ".attn.proj", v.hidden, v.hidden);
    builder.linear(block + ".mlp.linear_fc1", v.hidden, v.intermediate);
    builder.linear(block + ".mlp.linear_fc2", v.intermediate, v.hidden);
  }
  const std::int64_t merged = v.hidden * v.merge * v.merge;
  builder.norm("model.visual.merger.norm", v.hidden);
  builder.linear("model.visual.merger.linear_fc1", merged, merged);
  builder.linear("model.visual.merger.linear_fc2", merged, v.out_hidden);
}

class Builder {
 public:
  explicit Builder(CausalLM::Impl& model)
      : model_(model),
        config_(model.config),
        family_(*model.config.family),
        options_(at::TensorOptions().dtype(model.dtype).device(model.device)) {}

  void build() {
    const std::string& body = family_.body;
    if (config_.vision) build_vision(model_.modules, *config_.vision, options_);
    model_.embed = model_.modules.add<Embedding>(body + ".embed_tokens", "Embedding", ModuleKind::embedding);
    model_.embed->weight = at::empty({config_.vocab, config_.hidden}, options_);
    model_.embed->slots = {{"weight", &model_.embed->weight}};
    for (std::size_t i = 0; i < config_.layers.size(); ++i) {
      model_.layers.push_back(layer(body + ".layers." + std::to_string(i), config_.layers[i]));
    }
    model_.norm = norm(body + ".norm", config_.hidden);
    model_.lm_head = linear("lm_head", config_.hidden, config_.vocab, false, config_.tied);
    if (config_.tied) model_.lm_head->weight = model_.embed->weight;
  }

 private:
  std::string class_of(const char* suffix) const { return family_.class_prefix + suffix; }

  Linear* linear(const std::string& name, std::int64_t in, std::int64_t out, bool bias, bool shared = false) {
    return fill_linear(model_.modules.add<Linear>(name, "Linear", ModuleKind::linear), in, out, bias, shared);
  }

  Linear* fill_linear(Linear* module, std::int64_t in, std::int64_t out, bool bias, bool shared) {
    if (!shared) module->weight = at::empty({out, in}, options_);
    module->slots = {{"weight", &module->weight}};
    if (bias) {
      module->bias = at::empty({out}, options_);
      module->slots.push_back({"bias", &module->bias});
    }
    return module;
  }

  Plain* plain(const std::string& name, const std::string& class_name, ModuleKind kind, std::vector<std::int64_t> shape,
               const char* parameter, std::optional<at::ScalarType> dtype = {}) {
    Plain* module = model_.modules.add<Plain>(name, class_name, kind);
    module->first = at::empty(shape, dtype ? options_.dtype(*dtype) : options_);
    module->slots = {{parameter, &module->first}};
    return module;
  }

  Plain* norm(const std::string& name, std::int64_t size) {
    const bool fp32 = family_.norms == Norms::fp32_weight && model_.dtype == at::kHalf;
    return plain(name, class_of("RMSNorm"), ModuleKind::other, {size}, "weight",
                 fp32 ? std::optional(at::kFloat) : std::nullopt);
  }

  Layer layer(const std::string& path, const LayerConfig& kind) {
    Layer layer;
    layer.kind = kind;
    if (kind.linear_attention)
      layer.delta = delta_net(path + ".linear_attn");
    else
      layer.attention = attention(path + ".self_attn");
    if (kind.moe)
      layer.moe = moe(path + ".mlp");
    else
      layer.mlp = mlp(path + ".mlp", config_.intermediate, config_.mlp_bias);
    layer.input_norm = norm(path + ".input_layernorm", config_.hidden);
    layer.post_norm = norm(path + ".post_attention_layernorm", config_.hidden);
    return layer;
  }

  Attention attention(const std::string& path) {
    Attention a;
    const std::int64_t q = config_.heads * config_.head_dim, kv = config_.kv_heads * config_.head_dim;
    if (family_.sinks) {
      a.sinks = plain(path, class_of("Attention"), ModuleKind::other, {config_.heads}, "sinks");
    }
    a.q = linear(path + ".q_proj", config_.hidden, family_.output_gate ? 2 * q : q, config_.qkv_bias);
    a.k = linear(path + ".k_proj", config_.hidden, kv, config_.qkv_bias);
    a.v = linear(path + ".v_proj", config_.hidden, kv, config_.qkv_bias);
    a.o = linear(path + ".o_proj", q, config_.hidden, config_.o_bias);
    if (family_.qk_norm) {
      a.q_norm = norm(path + ".q_norm", config_.head_dim);
      a.k_norm = norm(path + ".k_norm", config_.head_dim);
    }
    return a;
  }

  DeltaNet delta_net(const std::string& path) {
    const LinearAttentionConfig& l = config_.linear;
    DeltaNet d;
    d.self = plain(path, class_of("GatedDeltaNet"), ModuleKind::other, {l.value_heads}, "dt_bias");
    d.self->second = at::empty({l.value_heads}, options_);
    d.self->slots.push_back({"A_log", &d.self->second});
    d.conv = plain(path + ".conv1d", "Conv1d", ModuleKind::conv, {l.conv_size(), 1, l.kernel}, "weight");
    d.norm = plain(path + ".norm", class_of("RMSNormGated"), ModuleKind::other, {l.value_dim}, "weight");
    d.out = linear(path + ".out_proj", l.value_size(), config_.hidden, false);
    d.qkv = linear(path + ".in_proj_qkv", config_.hidden, l.conv_size(), false);
    d.z = linear(path + ".in_proj_z", config_.hidden, l.value_size(), false);
    d.b = linear(path + ".in_proj_b", config_.hidden, l.value_heads, false);
    d.a = linear(path + ".in_proj_a", config_.hidden, l.value_heads, false);
    return d;
  }

  Mlp mlp(const std::string& path, std::int64_t intermediate, bool bias) {
    Mlp m;
    m.gate = linear(path + ".gate_proj", config_.hidden, intermediate, bias);
    m.up = linear(path + ".up_proj", config_.hidden, intermediate, bias);
    m.down = linear(path + ".down_proj", intermediate, config_.hidden, bias);
    return m;
  }

  Moe moe(const std::string& path) {
    const model::RuntimeExperts& parts = *family_.experts;
    Moe m;
    if (parts.first) m.experts = experts(path + ".experts");
    m.router = model_.modules.add<Linear>(path + "." + parts.router, parts.router_class, ModuleKind::other);
    fill_linear(m.router, config_.hidden, config_.moe.experts, parts.router_bias, false);
    if (!parts.first) m.experts = experts(path + ".experts");
    if (!parts.row->shared.empty()) {
      m.shared = mlp(path + ".shared_expert", config_.moe.shared_intermediate, false);
      m.shared_gate = linear(path + ".shared_expert_gate", config_.hidden, 1, false);
    }
    return m;
  }

  Experts::Matrix matrix(std::int64_t out, std::int64_t in) {
    const model::RuntimeExperts& parts = *family_.experts;
    Experts::Matrix m;
    m.in_out = parts.in_out;
    m.weight = at::empty({config_.moe.experts, parts.in_out ? in : out, parts.in_out ? out : in}, options_);
    if (parts.bias) m.bias = at::empty({config_.moe.experts, out}, options_);
    return m;
  }

  Experts* experts(const std::string& path) {
    const model::RuntimeExperts& parts = *family_.experts;
    Experts* e = model_.modules.add<Experts>(path, parts.row->class_name, ModuleKind::other);
    e->interleaved = parts.row->form.interleaved;
    e->gate_up = matrix(2 * config_.moe.intermediate, config_.hidden);
    e->down = matrix(config_.hidden, config_.moe.intermediate);
    e->slots.push_back({"gate_up_proj", &e->gate_up.weight});
    if (parts.bias) e->slots.push_back({"gate_up_proj_bias", &e->gate_up.bias});
    e->slots.push_back({"down_proj", &e->down.weight});
    if (parts.bias) e->slots.push_back({"down_proj_bias", &e->down.bias});
    return e;
  }

  CausalLM::Impl& model_;
  const ModelConfig& config_;
  const model::RuntimeRow& family_;
  at::TensorOptions options_;
};

// Decoding reads each weight once, spread over many pages. Huge pages save page faults and look-ups of addresses.
void use_huge_pages(const Modules& modules) {
  for (const auto& module : modules.all()) {
    for (const ModuleTensor& slot : module->slots) {
      if (slot.tensor->defined() && slot.tensor->is_cpu())
        advise_huge_pages(slot.tensor->mutable_data_ptr(), slot.tensor->nbytes());
    }
  }
}

bool is_norm(const Module& module) { return module.class_name.find("Norm") != std::string::npos; }

void init_tensor(const CausalLM::Impl& model, const Module& module, const ModuleTensor& slot,
                 at::Generator& generator) {
  Tensor& tensor = *slot.tensor;
  const bool zero_centred =
      model.config.family->norms == Norms::zero_centred && module.class_name.ends_with("MoeRMSNorm");
  if (slot.name == "bias" || slot.name.ends_with("_bias")) {
    if (slot.name == "dt_bias")
      tensor.fill_(1);
    else
      tensor.zero_();
  } else if (is_norm(module)) {
    tensor.fill_(zero_centred ? 0 : 1);
  } else if (slot.name == "A_log") {
    tensor.uniform_(0.01, 16, generator).log_();
  } else {
    tensor.normal_(0, model.config.initializer_range, generator);
  }
}

}  // namespace

Tensor* Module::find(std::string_view parameter) const {
  for (const ModuleTensor& slot : slots)
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

std::unique_ptr<CausalLM::Impl> build_network(ModelConfig config, at::ScalarType dtype, at::Device device) {
  auto model = std::make_unique<CausalLM::Impl>();
  model->config = std::move(config), model->dtype = dtype, model->device = device;
  model->frequencies = rope_frequencies(model->config.rope, model->config.head_dim);
  model->tied = model->config.tied;
  Builder(*model).build();
  use_huge_pages(model->modules);
  return model;
}

void init_weights(CausalLM::Impl& model, std::uint64_t seed) {
  at::NoGradGuard no_gradients;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const auto& module : model.modules.all()) {
    for (const ModuleTensor& slot : module->slots) {
      const bool again = model.tied && slot.tensor == &model.lm_head->weight;
      if (!again) init_tensor(model, *module, slot, generator);
    }
  }
}

}  // namespace peft::nn
