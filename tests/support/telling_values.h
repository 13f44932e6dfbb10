// A value for every key of adapter_config.json that says something: a new key needs one, or tests fail.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "peft/config.h"

namespace peft::testing {

inline constexpr Verb kVerbs[] = {Verb::inspect, Verb::targets, Verb::convert, Verb::verify, Verb::merge,
                                  Verb::combine, Verb::resize,  Verb::run,     Verb::create};

inline const std::map<std::string, std::string, std::less<>> kTellingValues = {
    {"alora_invocation_tokens", "[21, 7]"},
    {"alpha_pattern", R"({"q_proj": 2})"},
    {"arrow_config", R"({"top_k": 2})"},
    {"auto_mapping", R"({"base_model_class": "LlamaForCausalLM"})"},
    {"base_model_name_or_path", "\"someone/model\""},
    {"bias", "\"lora_only\""},
    {"corda_config", R"({"corda_method": "kpm"})"},
    {"enable_lora", "[true, false, true]"},
    {"ensure_weight_tying", "true"},
    {"eva_config", R"({"rho": 2.0})"},
    {"exclude_modules", R"(["lm_head"])"},
    {"fan_in_fan_out", "true"},
    {"inference_mode", "true"},
    {"init_lora_weights", "\"gaussian\""},
    {"kasa_config", R"({"beta": 0.0001})"},
    {"layer_replication", "[[0, 2], [1, 2]]"},
    {"layers_pattern", "\"layers\""},
    {"layers_to_transform", "[0, 1]"},
    {"loftq_config", R"({"loftq_bits": 4})"},
    {"lora_B_layout", "\"rank_major\""},
    {"lora_alpha", "5"},
    {"lora_bias", "true"},
    {"lora_dropout", "0.1"},
    {"lora_ga_config", R"({"scale": "stable"})"},
    {"megatron_config", R"({"num_layers": 2})"},
    {"megatron_core", "\"megatron.core\""},
    {"merge_weights", "true"},
    {"modules_to_save", R"(["lm_head"])"},
    {"monteclora_config", R"({"num_samples": 2})"},
    {"peft_type", "\"LORA\""},
    {"peft_version", "\"0.21.2\""},
    {"qalora_group_size", "16"},
    {"r", "3"},
    {"rank_pattern", R"({"q_proj": 3})"},
    {"revision", "\"main\""},
    {"runtime_config", R"({"ephemeral_gpu_offload": true})"},
    {"target_modules", R"(["q_proj", "v_proj"])"},
    {"target_parameters", R"(["mlp.experts.gate_up_proj"])"},
    {"task_type", "\"CAUSAL_LM\""},
    {"trainable_token_indices", "[1, 2]"},
    {"unsloth_fused_expert_lora", "true"},
    {"use_bdlora", R"({"nblocks": 2, "target_modules_bd_a": ["o_proj"], "target_modules_bd_b": ["q_proj"]})"},
    {"use_dora", "true"},
    {"use_qalora", "true"},
    {"use_rslora", "true"},
    {"velora_config", R"({"num_groups": 4})"},
};

}  // namespace peft::testing
