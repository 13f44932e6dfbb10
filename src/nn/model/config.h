// A model's config.json as the runtime needs it: every size and kind of layer, in one spelling, checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config_json/config_facts.h"
#include "model/families/runtime_table.h"

namespace peft::nn {

using model::Norms;

// From "rope_parameters" (transformers 5), or from rope_theta and rope_scaling (transformers 4).
struct RopeConfig {
  std::string type = "default";  // default, linear, llama3, yarn
  double theta = 10000, partial = 1;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  double original_max_position = 0;
  std::optional<double> attention_factor;
  double beta_fast = 32, beta_slow = 1, mscale = 0, mscale_all_dim = 0;
  bool truncate = true;
};

enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu };

struct LayerConfig {
  bool linear_attention = false, moe = false;
  std::int64_t window = 0;  // 0: sees everything before it
};

struct LinearAttentionConfig {
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, kernel = 0;
  std::int64_t key_size() const { return key_heads * key_dim; }
  std::int64_t value_size() const { return value_heads * value_dim; }
  std::int64_t conv_size() const { return 2 * key_size() + value_size(); }
};

struct MoeConfig {
  std::int64_t experts = 0, top_k = 0, intermediate = 0, shared_intermediate = 0;
  bool renormalise = true;
  double swiglu_alpha = 1.702, swiglu_limit = 7;
  double aux_loss_coef = 0, jitter = 0;
};

struct VisionConfig {
  std::int64_t depth = 0, hidden = 0, intermediate = 0, channels = 0, out_hidden = 0, positions = 0;
  std::int64_t patch = 0, temporal_patch = 0, merge = 0;
};

struct ModelConfig {
  const model::RuntimeRow* family = nullptr;
  std::string file;                                      // config.json: its path
  std::string model_type;                                // "qwen3_5_moe"
  std::string architecture;                              // "Qwen3_5MoeForCausalLM", the first of architectures; "" none
  std::int64_t vocab = 0, hidden = 0, intermediate = 0;  // intermediate: of dense layers; 0 where there are none
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  double eps = 1e-6, initializer_range = 0.02;
  double attention_dropout = 0;  // not implemented: training with it is refused
  bool qkv_bias = false, o_bias = false, mlp_bias = false, tied = false;
  Activation activation = Activation::silu;
  RopeConfig rope;
  std::vector<LayerConfig> layers;
  LinearAttentionConfig linear;
  MoeConfig moe;
  std::optional<VisionConfig> vision;
  std::string dtype;                       // "bfloat16"; "" not said
  std::vector<std::int64_t> media_tokens;  // ids that stand for images and videos: refused
};

// Throws MD_FORM and MD_FAMILY.
ModelConfig read_config(const model::ConfigFacts& facts);

// The rotary frequencies [rotary dim / 2] and the factor of cos and sin.
struct Frequencies {
  std::vector<float> inverse;
  double scaling = 1;
};
Frequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim);

}  // namespace peft::nn
