#include "config/peft_keys.h"

#include <algorithm>

namespace peft::config {
namespace {

// golden/config/keys_by_version.json; a test compares.
constexpr PeftKey kKeys[] = {
    {"alora_invocation_tokens", {0, 18, 1}, {0, 17, 1}, "null"},
    {"alpha_pattern", {0, 6, 2}, {0, 5, 0}, "{}"},
    {"arrow_config", {0, 18, 1}, {0, 17, 1}, "null"},
    {"auto_mapping", {0, 4, 0}, {0, 3, 0}, "null"},
    {"base_model_name_or_path", {0, 3, 0}, {0, 0, 0}, "null"},
    {"bias", {0, 3, 0}, {0, 0, 0}, "\"none\""},
    {"corda_config", {0, 15, 2}, {0, 14, 0}, "null"},
    {"ensure_weight_tying", {0, 18, 1}, {0, 17, 1}, "false"},
    {"eva_config", {0, 14, 0}, {0, 13, 2}, "null"},
    {"exclude_modules", {0, 14, 0}, {0, 13, 2}, "null"},
    {"fan_in_fan_out", {0, 3, 0}, {0, 0, 0}, "false"},
    {"inference_mode", {0, 3, 0}, {0, 0, 0}, "false"},
    {"init_lora_weights", {0, 3, 0}, {0, 0, 0}, "true"},
    {"kasa_config", {0, 21, 2}, {0, 20, 0}, "null"},
    {"layer_replication", {0, 10, 0}, {0, 9, 0}, "null"},
    {"layers_pattern", {0, 4, 0}, {0, 3, 0}, "null"},
    {"layers_to_transform", {0, 4, 0}, {0, 3, 0}, "null"},
    {"loftq_config", {0, 7, 1}, {0, 6, 2}, "{}"},
    {"lora_alpha", {0, 3, 0}, {0, 0, 0}, "8"},
    {"lora_bias", {0, 14, 0}, {0, 13, 2}, "false"},
    {"lora_dropout", {0, 3, 0}, {0, 0, 0}, "0.0"},
    {"lora_ga_config", {0, 19, 0}, {0, 18, 1}, "null"},
    {"megatron_config", {0, 7, 1}, {0, 6, 2}, "null"},
    {"megatron_core", {0, 7, 1}, {0, 6, 2}, "\"megatron.core\""},
    {"modules_to_save", {0, 3, 0}, {0, 0, 0}, "null"},
    {"monteclora_config", {0, 20, 0}, {0, 19, 1}, "null"},
    {"peft_type", {0, 3, 0}, {0, 0, 0}, "\"LORA\""},
    {"peft_version", {0, 18, 1}, {0, 17, 1}, "null"},
    {"qalora_group_size", {0, 16, 0}, {0, 15, 2}, "16"},
    {"r", {0, 3, 0}, {0, 0, 0}, "8"},
    {"rank_pattern", {0, 6, 2}, {0, 5, 0}, "{}"},
    {"revision", {0, 4, 0}, {0, 3, 0}, "null"},
    {"target_modules", {0, 3, 0}, {0, 0, 0}, "null"},
    {"target_parameters", {0, 17, 0}, {0, 16, 0}, "null"},
    {"task_type", {0, 3, 0}, {0, 0, 0}, "null"},
    {"trainable_token_indices", {0, 15, 2}, {0, 14, 0}, "null"},
    {"use_bdlora", {0, 19, 0}, {0, 18, 1}, "null"},
    {"use_dora", {0, 9, 0}, {0, 8, 2}, "false"},
    {"use_qalora", {0, 16, 0}, {0, 15, 2}, "false"},
    {"use_rslora", {0, 8, 2}, {0, 7, 1}, "false"},
    {"velora_config", {0, 20, 0}, {0, 19, 1}, "null"},
};

constexpr std::string_view kExtras[] = {"lora_B_layout", "runtime_config", "unsloth_fused_expert_lora"};
constexpr std::string_view kOwnPrefix = "peft_cpp_";

}  // namespace

std::span<const PeftKey> peft_keys() { return kKeys; }

const PeftKey* find_peft_key(std::string_view key) {
  const auto* found =
      std::lower_bound(std::begin(kKeys), std::end(kKeys), key, [](const PeftKey& row, auto k) { return row.key < k; });
  return found != std::end(kKeys) && found->key == key ? found : nullptr;
}

bool is_known_extra(std::string_view key) {
  return key.starts_with(kOwnPrefix) || std::find(std::begin(kExtras), std::end(kExtras), key) != std::end(kExtras);
}

}  // namespace peft::config
