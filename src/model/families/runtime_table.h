// The model types that the runtime (src/nn) runs: the section "runtime" of data/families.json, with the paths and forms
// that the rows of families and dense types have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/families/table.h"

namespace peft::model {

enum class Biases : std::uint8_t {
  none,
  qkv,                     // q, k and v have one
  qkv_by_config,           // q, k and v, where "qkv_bias" is true, which is the default
  by_config,               // q, k, v and o, where "attention_bias" is true
  by_config_true_default,  // the same, and true is the default
};
// Which layers attend to a sliding window only.
enum class Windows : std::uint8_t {
  none,
  all,                            // every layer, where sliding_window is set
  all_if_used,                    // every layer, where use_sliding_window is true
  layer_types_alternate,          // layer_types; by default every other layer, from 0 on
  layer_types_alternate_if_used,  // the same where use_sliding_window is true, below max_window_layers
  layer_types_from_max,           // layer_types; by default from max_window_layers on, where use_sliding_window is true
};
enum class Norms : std::uint8_t {
  plain,         // rounded to the activations' dtype, then times w
  zero_centred,  // times 1 + w, then rounded
  fp32_weight,   // times w, which stays fp32, then rounded
};

struct RuntimeExperts {
  const ExpertsRow* row = nullptr;   // paths, keys and the form of the parameters, as transformers 5 has them
  std::string router, router_class;  // "gate", "MixtralTopKRouter"
  bool router_bias = false;
  bool first = false;                  // registered before the router
  bool softmax_of_chosen = false;      // over the chosen logits only; else over all, before they are chosen
  bool renormalise_by_config = false;  // where "norm_topk_prob" is true; else always
  bool clamped = false;                // gpt_oss's SwiGLU: swiglu_limit, swiglu_alpha
  bool in_out = false, bias = false;   // of the fused parameters
};

struct RuntimeRow {
  std::string model_type;
  std::string class_prefix;  // "Qwen3Moe": of Qwen3MoeRMSNorm
  std::string section;       // the sub-config of the text model: "text_config"; "" none
  std::string body;          // path of the decoder: "model", "model.language_model"
  Biases biases = Biases::none;
  Windows windows = Windows::none;
  Norms norms = Norms::plain;
  bool qk_norm = false, sinks = false, output_gate = false;
  bool linear_attention = false;      // gated delta net in the layers that layer_types names so
  bool mlp_bias = false;              // where "mlp_bias" is true
  std::int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads
  double default_eps = 1e-6, default_theta = 10000, default_partial_rotary = 1;
  std::optional<RuntimeExperts> experts;
};

// null: models of this type do not run here.
const RuntimeRow* find_runtime(std::string_view model_type);
// The types that run, sorted.
std::vector<std::string> runtime_types();

}  // namespace peft::model
