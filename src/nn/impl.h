// The parts of a model, pointing to its modules, and what one forward pass carries from part to part.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/config.h"
#include "nn/modules.h"
#include "nn/torch.h"
#include "peft/nn/model.h"

namespace peft::nn {

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
};

// Makes all modules, with tensors of the right shapes and no values.
std::unique_ptr<CausalLM::Impl> build_model(ModelConfig config, at::ScalarType dtype, at::Device device);
// Seeded random values, as the real classes initialise.
void init_weights(CausalLM::Impl& model, std::uint64_t seed);
// The modules of the vision tower, below "model.visual".
void build_vision(Modules& modules, const VisionConfig& vision, at::TensorOptions options);

// What a layer remembers of the tokens before.
struct LayerCache {
  Tensor keys, values;  // [sequences, heads, capacity, head dim]
  Tensor conv, state;   // [sequences, channels, kernel - 1]; [sequences, heads, key dim, value dim] fp32
};
struct Cache {
  std::vector<LayerCache> layers;
  std::int64_t length = 0, sequences = 0;
};

struct Pass {
  const CausalLM::Impl& model;
  const Context& context;
  std::int64_t sequences = 0, tokens = 0, past = 0;
  Cache* cache = nullptr;
  bool inference = false;                  // no gradients: results may be written in place
  Tensor cos{}, sin{};                     // [1 or sequences, tokens, 1, rotary / 2], fp32
  Tensor padding{};                        // [sequences, past + tokens] bool, true: real; undefined: all real
  std::map<std::int64_t, Tensor> masks{};  // by window: of all queries at once
  std::int64_t layer = 0;
  std::vector<Tensor> router_logits{};  // of each layer with experts
  bool want_router_logits = false;
  Tensor expert_rows{};  // of the layer before: memory that is used again

  bool recording() const { return context.recorder != nullptr; }
  void record(const char* name, const Tensor& value) const;      // "layers.N.NAME"
  void record_top(const char* name, const Tensor& value) const;  // NAME
};

Tensor run_attention(Pass& pass, const Layer& layer, const Tensor& x);
Tensor run_delta_net(Pass& pass, const Layer& layer, const Tensor& x);
Tensor run_mlp(const Pass& pass, const Mlp& mlp, const Tensor& x);
Tensor run_moe(Pass& pass, const Moe& moe, const Tensor& x);

// Over the last dimension, as the family's norm class does it.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, Norms kind);
Tensor activate(const Tensor& x, Activation activation);
// silu(gate) * up and its relatives; gate may be consumed.
Tensor gated(const Tensor& gate, const Tensor& up, Activation activation);
void set_rotary(Pass& pass, const Tensor& positions);
// x [sequences, tokens, heads, head dim]
Tensor rotate(const Pass& pass, const Tensor& x);
// Which keys a block of queries may see; positions in the cache count from 0.
struct Sight {
  std::int64_t first = 0, count = 0;  // queries of this pass
  std::int64_t begin = 0, end = 0;    // keys
};
// What is added to scores, [1 or sequences, 1, 1, queries, keys]; undefined: nothing is hidden.
Tensor mask_of(Pass& pass, std::int64_t window, const Sight& sight);
Tensor load_balancing_loss(const Pass& pass);

// Whether own loops may run on these: no gradients wanted, in the CPU's memory, fp32.
bool plain_floats(const Tensor& tensor);

}  // namespace peft::nn
