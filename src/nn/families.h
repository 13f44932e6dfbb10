// What tells the families apart that run here: which of the known parts their layers are made of. One row each; the
// rest of src/nn knows parts, not families.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace peft::nn {

enum class Biases : std::uint8_t {
  none,
  qkv,            // q, k, v have one
  qkv_by_config,  // "qkv_bias": q, k, v
  by_config,      // "attention_bias": q, k, v, o
};
// Which layers see a window only.
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
enum class Renormalise : std::uint8_t { always, by_config };  // "norm_topk_prob"

struct MoeParts {
  std::string_view experts_class{}, router_class{};
  std::string_view router{};        // "gate"
  bool experts_first = false;       // registered before the router
  bool softmax_after_topk = false;  // over the chosen logits only; else over all, then top-k
  Renormalise renormalise = Renormalise::always;
  bool router_bias = false;
  std::string_view intermediate_key{};  // "moe_intermediate_size"
  bool dense_layers = false;            // decoder_sparse_step, mlp_only_layers
  bool shared_expert = false;
  bool in_out = false, interleaved = false, bias = false;  // of the fused parameters
  bool clamped = false;                                    // gpt_oss's SwiGLU: swiglu_limit, swiglu_alpha
};

struct FamilyParts {
  std::string_view model_type{};
  std::string_view class_prefix{};  // "Qwen3Moe": of Qwen3MoeRMSNorm
  std::string_view section{};       // the sub-config of the text model: "text_config"; "" none
  std::string_view body{};          // path of the decoder: "model", "model.language_model"
  Biases biases = Biases::none;
  Windows windows = Windows::none;
  Norms norms = Norms::plain;
  bool qk_norm = false, sinks = false, output_gate = false;
  bool linear_attention = false;      // gated delta net in the layers that layer_types names so
  bool mlp_bias = false;              // "mlp_bias"
  std::int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads
  double default_eps = 1e-6, default_theta = 10000, default_partial_rotary = 1;
  const MoeParts* moe = nullptr;
};

std::span<const FamilyParts> family_parts();
const FamilyParts* find_family_parts(std::string_view model_type);  // null: does not run here

}  // namespace peft::nn
