// Models of a few thousand parameters, from their config.
#pragma once

#include <fstream>

#include "nn/golden_nn.h"
#include "peft/nn/model.h"
#include "support/golden.h"

namespace peft::nn::testing {

inline Json qwen3_moe(Json changes) {
  Json config = {{"architectures", {"Qwen3MoeForCausalLM"}},
                 {"model_type", "qwen3_moe"},
                 {"vocab_size", 64},
                 {"hidden_size", 32},
                 {"intermediate_size", 48},
                 {"moe_intermediate_size", 16},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 8},
                 {"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", Json::array()},
                 {"norm_topk_prob", false},
                 {"hidden_act", "silu"},
                 {"rms_norm_eps", 1e-6},
                 {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
                 {"max_position_embeddings", 32768},
                 {"tie_word_embeddings", false},
                 {"attention_bias", false}};
  config.update(changes);
  return config;
}

inline Json mixtral() {
  return {{"architectures", {"MixtralForCausalLM"}},
          {"model_type", "mixtral"},
          {"vocab_size", 64},
          {"hidden_size", 32},
          {"intermediate_size", 16},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 8},
          {"num_local_experts", 4},
          {"num_experts_per_tok", 2},
          {"hidden_act", "silu"},
          {"rms_norm_eps", 1e-5},
          {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
          {"max_position_embeddings", 4096},
          {"tie_word_embeddings", false}};
}

inline std::shared_ptr<CausalLM> made(const peft::testing::TemporaryFolder& folder, const Json& config,
                                      const InitOptions& options) {
  std::ofstream(folder.path() / "config.json") << config.dump();
  return init_model(folder.path().string(), options);
}

}  // namespace peft::nn::testing
