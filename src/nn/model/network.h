// A model that runs: its layers, which point to its modules.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/model/config.h"
#include "nn/model/modules.h"
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
