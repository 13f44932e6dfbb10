// Makes the modules of a model, in the registration order of the real classes.
#include "base/system.h"
#include "nn/impl.h"

namespace peft::nn {
namespace {

class Builder {
 public:
  explicit Builder(CausalLM::Impl& model)
      : model_(model),
        config_(model.config),
        family_(*model.config.family),
        options_(at::TensorOptions().dtype(model.dtype).device(model.device)) {}

  void build() {
    const std::string body(family_.body);
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
  std::string class_of(const char* suffix) const { return std::string(family_.class_prefix) + suffix; }

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
    const MoeParts& parts = *family_.moe;
    Moe m;
    if (parts.experts_first) m.experts = experts(path + ".experts");
    m.router = model_.modules.add<Linear>(path + "." + std::string(parts.router), std::string(parts.router_class),
                                          ModuleKind::other);
    fill_linear(m.router, config_.hidden, config_.moe.experts, parts.router_bias, false);
    if (!parts.experts_first) m.experts = experts(path + ".experts");
    if (parts.shared_expert) {
      m.shared = mlp(path + ".shared_expert", config_.moe.shared_intermediate, false);
      m.shared_gate = linear(path + ".shared_expert_gate", config_.hidden, 1, false);
    }
    return m;
  }

  Experts::Matrix matrix(std::int64_t out, std::int64_t in) {
    const MoeParts& parts = *family_.moe;
    Experts::Matrix m;
    m.in_out = parts.in_out;
    m.weight = at::empty({config_.moe.experts, parts.in_out ? in : out, parts.in_out ? out : in}, options_);
    if (parts.bias) m.bias = at::empty({config_.moe.experts, out}, options_);
    return m;
  }

  Experts* experts(const std::string& path) {
    const MoeParts& parts = *family_.moe;
    Experts* e = model_.modules.add<Experts>(path, std::string(parts.experts_class), ModuleKind::other);
    e->interleaved = parts.interleaved;
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
  const FamilyParts& family_;
  at::TensorOptions options_;
};

// Decoding reads weights once each, from pages all over; filling them touches each page for the first time.
void use_huge_pages(const Modules& modules) {
  for (const auto& module : modules.all()) {
    for (const Slot& slot : module->slots) {
      if (slot.tensor->defined() && slot.tensor->is_cpu())
        advise_huge_pages(slot.tensor->mutable_data_ptr(), slot.tensor->nbytes());
    }
  }
}

}  // namespace

std::unique_ptr<CausalLM::Impl> build_model(ModelConfig config, at::ScalarType dtype, at::Device device) {
  auto model = std::make_unique<CausalLM::Impl>();
  model->config = std::move(config), model->dtype = dtype, model->device = device;
  model->frequencies = rope_frequencies(model->config.rope, model->config.head_dim);
  model->tied = model->config.tied;
  Builder(*model).build();
  use_huge_pages(model->modules);
  return model;
}

}  // namespace peft::nn
