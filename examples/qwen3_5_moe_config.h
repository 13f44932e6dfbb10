// The small Qwen3.5-MoE of the two programs: an image model's config with 8 layers, of which every fourth has full
// attention, 8 experts (2 per token) and the vocabulary of the real model.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

// A folder with a config.json, removed at the end.
class TinyModel {
 public:
  explicit TinyModel(int hidden, int intermediate) {
    std::string name = (std::filesystem::temp_directory_path() / "peft-example-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = name;
    std::filesystem::create_directory(folder_ / "base");
    std::ofstream(folder_ / "base" / "config.json") << config(std::to_string(hidden), std::to_string(intermediate));
  }
  ~TinyModel() { std::filesystem::remove_all(folder_); }
  TinyModel(const TinyModel&) = delete;

  std::string base() const { return (folder_ / "base").string(); }
  std::string adapter() const { return (folder_ / "adapter").string(); }

 private:
  static std::string config(const std::string& hidden, const std::string& intermediate) {
    return R"({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
      "image_token_id": 248056, "video_token_id": 248057, "vision_start_token_id": 248053, "vision_end_token_id": 248054,
      "tie_word_embeddings": false,
      "text_config": {"model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": )" +
           hidden + R"(, "head_dim": 16,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention",
                        "linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "attn_output_gate": true, "attention_bias": false,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": )" +
           intermediate +
           R"(, "shared_expert_intermediate_size": 32, "router_aux_loss_coef": 0.001, "hidden_act": "silu", "rms_norm_eps": 1e-06,
        "initializer_range": 0.02, "max_position_embeddings": 512, "tie_word_embeddings": false,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                            "mrope_section": [1, 1, 0], "mrope_interleaved": true}},
      "vision_config": {"model_type": "qwen3_5_moe_vision", "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": )" +
           hidden +
           R"(, "num_position_embeddings": 16, "deepstack_visual_indexes": [], "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.02, "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}})";
  }

  std::filesystem::path folder_;
};
