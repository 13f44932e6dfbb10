#include "nn/families.h"

namespace peft::nn {
namespace {

constexpr MoeParts kMixtral{.experts_class = "MixtralExperts",
                            .router_class = "MixtralTopKRouter",
                            .router = "gate",
                            .intermediate_key = "intermediate_size"};
constexpr MoeParts kQwen2Moe{.experts_class = "Qwen2MoeExperts",
                             .router_class = "Qwen2MoeTopKRouter",
                             .router = "gate",
                             .renormalise = Renormalise::by_config,
                             .intermediate_key = "moe_intermediate_size",
                             .dense_layers = true,
                             .shared_expert = true};
constexpr MoeParts kQwen3Moe{.experts_class = "Qwen3MoeExperts",
                             .router_class = "Qwen3MoeTopKRouter",
                             .router = "gate",
                             .experts_first = true,
                             .renormalise = Renormalise::by_config,
                             .intermediate_key = "moe_intermediate_size",
                             .dense_layers = true};
constexpr MoeParts kQwen35Moe{.experts_class = "Qwen3_5MoeExperts",
                              .router_class = "Qwen3_5MoeTopKRouter",
                              .router = "gate",
                              .intermediate_key = "moe_intermediate_size",
                              .shared_expert = true};
constexpr MoeParts kGptOss{.experts_class = "GptOssExperts",
                           .router_class = "GptOssTopKRouter",
                           .router = "router",
                           .softmax_after_topk = true,
                           .router_bias = true,
                           .intermediate_key = "intermediate_size",
                           .in_out = true,
                           .interleaved = true,
                           .bias = true,
                           .clamped = true};

constexpr FamilyParts qwen35(std::string_view model_type, std::string_view section, std::string_view body) {
  return {.model_type = model_type,
          .class_prefix = "Qwen3_5Moe",
          .section = section,
          .body = body,
          .biases = Biases::by_config,
          .norms = Norms::zero_centred,
          .qk_norm = true,
          .output_gate = true,
          .linear_attention = true,
          .default_head_dim = 256,
          .default_partial_rotary = 0.25,
          .moe = &kQwen35Moe};
}

constexpr FamilyParts kFamilies[] = {
    {.model_type = "gpt_oss",
     .class_prefix = "GptOss",
     .body = "model",
     .biases = Biases::by_config,
     .windows = Windows::layer_types_alternate,
     .norms = Norms::fp32_weight,
     .sinks = true,
     .default_head_dim = 64,
     .default_eps = 1e-5,
     .default_theta = 150000,
     .moe = &kGptOss},
    {.model_type = "llama", .class_prefix = "Llama", .body = "model", .biases = Biases::by_config, .mlp_bias = true},
    {.model_type = "mixtral",
     .class_prefix = "Mixtral",
     .body = "model",
     .windows = Windows::all,
     .default_eps = 1e-5,
     .default_theta = 1e6,
     .moe = &kMixtral},
    {.model_type = "qwen2",
     .class_prefix = "Qwen2",
     .body = "model",
     .biases = Biases::qkv,
     .windows = Windows::layer_types_from_max},
    {.model_type = "qwen2_moe",
     .class_prefix = "Qwen2Moe",
     .body = "model",
     .biases = Biases::qkv_by_config,
     .windows = Windows::layer_types_alternate_if_used,
     .moe = &kQwen2Moe},
    {.model_type = "qwen3",
     .class_prefix = "Qwen3",
     .body = "model",
     .biases = Biases::by_config,
     .windows = Windows::layer_types_from_max,
     .qk_norm = true,
     .default_head_dim = 128},
    qwen35("qwen3_5_moe", "text_config", "model.language_model"),
    qwen35("qwen3_5_moe_text", "", "model"),
    {.model_type = "qwen3_moe",
     .class_prefix = "Qwen3Moe",
     .body = "model",
     .biases = Biases::by_config,
     .windows = Windows::all_if_used,
     .qk_norm = true,
     .moe = &kQwen3Moe},
};

}  // namespace

std::span<const FamilyParts> family_parts() { return kFamilies; }

const FamilyParts* find_family_parts(std::string_view model_type) {
  for (const FamilyParts& family : kFamilies)
    if (family.model_type == model_type) return &family;
  return nullptr;
}

}  // namespace peft::nn
