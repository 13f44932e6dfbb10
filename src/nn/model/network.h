// The modules a model is made of: what they are called, the tensors they hold, and where an adapter hooks in. The
// layers, which point to them, and the model as a whole. Activations are flat everywhere: [rows, features], one row for
// each token of the batch (row b * T + t).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "nn/kernels/grouped.h"
#include "nn/model/config.h"
#include "peft/model.h"
#include "peft/nn/model.h"

namespace peft::nn {

struct Linear;
struct Embedding;
struct Experts;

// The hooks: a module with an adapter (`adapter = ...`) gives it the forward pass. null: the base alone.
struct LinearAdapter {
  virtual ~LinearAdapter() = default;
  // The module's output for x [rows, in]. base.compute(x) is the output without adapter.
  virtual Tensor forward(const Linear& base, const Tensor& x, const ForwardContext& context) = 0;
};
struct EmbeddingAdapter {
  virtual ~EmbeddingAdapter() = default;
  virtual Tensor forward(const Embedding& base, const Tensor& ids,
                         const ForwardContext& context) = 0;  // ids [rows] int64
};
// Of one fused expert parameter. Rows are sorted by expert; row j is token groups.token[j], at expert groups.expert[j].
struct ExpertAdapter {
  virtual ~ExpertAdapter() = default;
  // Returns base_out [M, out] plus the adapter's output for x [M, in]. The features of base_out lie as in the parameter
  // (all gate, then all up; interleaved where the class interleaves). The expert's bias is not added yet. base_out may
  // be changed in place when gradients are off.
  virtual Tensor apply(const Tensor& base_out, const Tensor& x, const ExpertGroups& groups,
                       const ForwardContext& context) = 0;
};

// A tensor of a module, by its name inside the module. The module owns it.
struct ModuleTensor {
  std::string name;  // "weight", "gate_up_proj"
  Tensor* tensor = nullptr;
};

struct Module {
  std::string name;        // "model.layers.0.self_attn.q_proj", as transformers 5 says it
  std::string class_name;  // "Linear", "MixtralExperts"
  ModuleKind kind = ModuleKind::other;
  std::vector<ModuleTensor> slots;  // in registration order
  virtual ~Module() = default;
  Tensor* find(std::string_view parameter) const;
};

// torch.nn.Linear. A router is one too: the same arithmetic on the parameters of its own class (kind `other`).
struct Linear : Module {
  Tensor weight, bias;  // [out, in]; [out] or undefined
  std::shared_ptr<LinearAdapter> adapter;
  std::int64_t in() const { return weight.size(1); }
  std::int64_t out() const { return weight.size(0); }
  Tensor compute(const Tensor& x) const;  // without adapter
  Tensor forward(const Tensor& x, const ForwardContext& context) const;
};

struct Embedding : Module {
  Tensor weight;  // [vocabulary, features]
  std::shared_ptr<EmbeddingAdapter> adapter;
  Tensor compute(const Tensor& ids) const;
  Tensor forward(const Tensor& ids, const ForwardContext& context) const;
};

// The fused experts of one layer.
struct Experts : Module {
  // A parameter [E, out, in] (or [E, in, out]) with its bias [E, out] and its hook.
  struct Matrix {
    Tensor weight, bias;
    bool in_out = false;  // stored [E, in, out]
    std::shared_ptr<ExpertAdapter> adapter;
    Tensor natural() const { return in_out ? weight.transpose(1, 2) : weight; }  // [E, out, in], a view
  };
  Matrix gate_up, down;
  bool interleaved = false;  // rows gate, up, gate, up ...; else all gate, then all up
  std::int64_t num_experts() const { return gate_up.weight.size(0); }
  // A matrix's forward pass: base, adapter, bias.
  Tensor project(const Matrix& matrix, const Tensor& x, const ExpertGroups& groups,
                 const ForwardContext& context) const;
};

// A module without a hook: norms, convolutions, attention sinks.
struct Plain : Module {
  Tensor first, second;
};

// All modules of a model that hold tensors, in the registration order of the real class.
class Modules {
 public:
  const std::vector<std::unique_ptr<Module>>& all() const { return all_; }
  Module* find(std::string_view name) const;  // null when absent
  template <class T>
  T* find(std::string_view name) const {
    return dynamic_cast<T*>(find(name));
  }

  template <class T>
  T* add(std::string name, std::string class_name, ModuleKind kind) {  // NOLINT(performance-unnecessary-value-param)
    auto module = std::make_unique<T>();
    module->name = std::move(name), module->class_name = std::move(class_name), module->kind = kind;
    T* raw = module.get();
    append(std::move(module));
    return raw;
  }

 private:
  void append(std::unique_ptr<Module> module);
  std::vector<std::unique_ptr<Module>> all_;
  std::unordered_map<std::string, Module*> by_name_;
};

// ---- The layers, which point to their modules.

struct Attention {
  Linear *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr;
  Plain *q_norm = nullptr, *k_norm = nullptr;  // null: none
  Plain* sinks = nullptr;                      // null: none
};
struct DeltaNet {
  Plain* self = nullptr;  // dt_bias, A_log
  Plain *conv = nullptr, *norm = nullptr;
  Linear *qkv = nullptr, *z = nullptr, *b = nullptr, *a = nullptr, *out = nullptr;
};
struct Mlp {
  Linear *gate = nullptr, *up = nullptr, *down = nullptr;
};
struct Moe {
  Linear* router = nullptr;
  Experts* experts = nullptr;
  std::optional<Mlp> shared;
  Linear* shared_gate = nullptr;
};
struct Layer {
  LayerConfig kind;
  std::optional<Attention> attention;  // or
  std::optional<DeltaNet> delta;
  std::optional<Mlp> mlp;  // or
  std::optional<Moe> moe;
  Plain *input_norm = nullptr, *post_norm = nullptr;
};

struct CausalLM::Impl {
  ModelConfig config;
  std::string folder;
  std::shared_ptr<const peft::Model> facts;  // null: not asked for yet
  Modules modules;
  Embedding* embed = nullptr;
  std::vector<Layer> layers;
  Plain* norm = nullptr;
  Linear* lm_head = nullptr;
  Frequencies frequencies;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  bool tied = false;  // lm_head's weight is the embedding's; config.tied: what config.json says
  std::vector<std::string> warnings;
  bool has_adapters = false;  // a PeftModel has its hooks in

  // The input or the output embedding's weight.
  bool is_embedding(const Tensor* weight) const { return weight == &embed->weight || weight == &lm_head->weight; }
};

// Makes all modules, in the registration order of the real classes, with tensors of the right shapes and no values.
std::unique_ptr<CausalLM::Impl> build_network(ModelConfig config, at::ScalarType dtype, at::Device device);
// Gives every tensor the random values that the real classes start with, from one seed.
void init_weights(CausalLM::Impl& model, std::uint64_t seed);

}  // namespace peft::nn
