// What one forward pass carries from layer to layer, and the arithmetic that all families share: norms, activations and
// the dense MLP.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "nn/model/network.h"

namespace peft::nn {

// What a layer keeps of the tokens before.
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
  const ForwardContext& context;
  std::int64_t sequences = 0, tokens = 0, past = 0;
  Cache* cache = nullptr;
  bool inference = false;                  // no gradients: results may be written in place
  Tensor cos{}, sin{};                     // [1 or sequences, tokens, 1, rotary / 2], fp32
  Tensor padding{};                        // [sequences, past + tokens] bool, true: real; undefined: all real
  std::map<std::int64_t, Tensor> masks{};  // by window: of all queries at once
  std::int64_t layer = 0;
  std::vector<Tensor> router_logits{};  // of each layer with experts
  bool want_router_logits = false;
  // Gradient checkpointing: the experts that the tokens of this layer chose. The first run fills it in, the second one
  // takes it. null: each run chooses.
  Tensor* chosen_experts = nullptr;
  std::vector<std::int64_t> documents{};  // packing: their lengths, one after the other; empty: one for each sequence
  std::function<void(std::int64_t layer, const Tensor& chosen)> on_routing{};
  Tensor expert_rows{};  // of the layer before: memory that is used again

  bool recording() const { return context.recorder != nullptr; }
  void record(const char* name, const Tensor& value) const;      // "layers.N.NAME"
  void record_top(const char* name, const Tensor& value) const;  // NAME
};

// Over the last dimension, as the family's norm class does it.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, Norms kind);
Tensor activate(const Tensor& x, Activation activation);
// activation(gate) * up. gate may be overwritten.
Tensor gated(const Tensor& gate, const Tensor& up, Activation activation);
Tensor run_mlp(const Pass& pass, const Mlp& mlp, const Tensor& x);

// Whether own loops may run on the tensor: fp32, on the CPU, no gradients.
bool plain_floats(const Tensor& tensor);

}  // namespace peft::nn
