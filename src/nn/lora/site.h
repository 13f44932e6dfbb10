// One target of the model with what every adapter has on it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nn/lora/grouped.h"
#include "nn/modules.h"

namespace peft::nn {

// Which adapters act, shared by all hooks of a model. Adapters are numbers here; PeftModel knows their names.
struct Switch {
  bool enabled = true;
  std::vector<int> active;  // in order of activation
};

enum class SiteKind : std::uint8_t {
  linear,  // nn.Linear, or a 2-D parameter that is used like one: a router's weight
  embedding,
  experts,    // [E, out, in] or [E, in, out]
  bias_rows,  // [E, out]: a bias of experts, row e of which is added to expert e's output
};

// The factors of one adapter at one site.
struct SiteFactors {
  FactorStack stack;
  at::Tensor bias;       // lora_bias: [out]
  at::Tensor magnitude;  // DoRA: [out]; experts: [experts, out], in the order of the parameter's rows
  double dropout = 0;
  // Where gate and up came as pairs of their own: the components of gate; the rest is up's. -1: they share all.
  std::int64_t split = -1;

  struct NormCache;  // DoRA's row norms, while nothing they depend on has changed
  mutable std::shared_ptr<NormCache> norms;
};

struct Site {
  SiteKind kind = SiteKind::linear;
  std::string module;         // "model.layers.0.mlp.experts"
  std::string parameter;      // "gate_up_proj"; "weight" of a dense module
  bool by_parameter = false;  // a target of target_parameters
  std::string key;            // place on disk: "model.layers.0.mlp.experts.base_layer"
  const Module* owner = nullptr;
  at::Tensor* weight = nullptr;     // the base's tensor
  at::Tensor* base_bias = nullptr;  // null: the module has none
  bool in_out = false;              // of experts: stored [E, in, out]
  const Experts* experts = nullptr;
  double embed_scale = 1;
  std::pair<std::size_t, std::size_t> order;  // of the module in the model, of the parameter in the module

  std::map<int, SiteFactors> adapters;
  std::vector<int> merged;             // in order
  at::Tensor unmerged, unmerged_bias;  // copies from before the first merge, if they are kept

  std::string name() const { return module + "." + parameter; }
  std::string target() const { return by_parameter ? name() : module; }  // as rank_pattern sees it
  const SiteFactors* find(int adapter) const {
    const auto at = adapters.find(adapter);
    return at == adapters.end() ? nullptr : &at->second;
  }
  std::int64_t num_experts() const;
  std::int64_t in() const;
  std::int64_t out() const;
  std::string class_name() const;  // PEFT's: "lora.Linear", "lora.ParamWrapper"
};

// lora_A [experts * rank, in] and lora_B [out, rank * experts] of PEFT's file, and back. Gradients as well.
at::Tensor a_in_file_form(const at::Tensor& a);
at::Tensor b_in_file_form(const at::Tensor& b);
at::Tensor a_from_file_form(const at::Tensor& a, std::int64_t experts);
at::Tensor b_from_file_form(const at::Tensor& b, std::int64_t experts);

// scale * B A in the shape of the base parameter: the product in the factors' dtype, then times the scale.
at::Tensor delta_weight(const Site& site, const SiteFactors& factors);

}  // namespace peft::nn
