// What PEFT refuses when it builds a LoraConfig, or the layers of it, whatever the model.
#include <fmt/format.h>

#include <algorithm>

#include "config/adapter_fields.h"
#include "config/suffix_pattern.h"

namespace peft::config {
namespace {

// bool(value) in Python.
bool is_true(const Json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  return !value.empty();
}

Json value_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? Json() : *found;
}

bool is_all_linear(const std::string& target) {
  std::string lower = target;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower == "all-linear";
}

void check_task(const AdapterConfig& config) {
  constexpr std::string_view kTasks[] = {"SEQ_CLS",   "SEQ_2_SEQ_LM", "CAUSAL_LM",
                                         "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"};
  if (!config.task_type || std::find(std::begin(kTasks), std::end(kTasks), *config.task_type) != std::end(kTasks))
    return;
  refuse(ErrorCode::CF_VALUE, config, "task_type", "no such task",
         "SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION or null", *config.task_type,
         "ValueError");
}

void check_layers(const AdapterConfig& config) {
  const bool pattern_targets = std::holds_alternative<std::string>(config.target_modules);
  const std::string hint = "write the layers into the pattern, or make target_modules a list";
  if (pattern_targets && config.layers_to_transform) {
    refuse(ErrorCode::CF_VALUE, config, "layers_to_transform", "cannot go with a target_modules that is a string",
           "null", *config.layers_to_transform, "ValueError", hint);
  }
  if (pattern_targets && config.layers_pattern) {
    refuse(ErrorCode::CF_VALUE, config, "layers_pattern", "cannot go with a target_modules that is a string", "null",
           *config.layers_pattern, "ValueError", hint);
  }
  const bool has_pattern =
      config.layers_pattern && std::any_of(config.layers_pattern->begin(), config.layers_pattern->end(),
                                           [](const std::string& pattern) { return !pattern.empty(); });
  if (has_pattern && !config.layers_to_transform) {
    refuse(ErrorCode::CF_VALUE, config, "layers_pattern", "means nothing without layers_to_transform",
           "layers_to_transform beside it", *config.layers_pattern, "ValueError");
  }
}

void check_variants(const AdapterConfig& config, const Json& object) {
  if (config.use_dora && is_true(value_of(object, "megatron_config"))) {
    refuse(ErrorCode::CF_VALUE, config, "use_dora", "DoRA does not go with megatron_config", "false", true,
           "ValueError");
  }
  if (config.init_lora_weights == "loftq" && !is_true(value_of(object, "loftq_config"))) {
    refuse(ErrorCode::CF_VALUE, config, "loftq_config", "must be given when init_lora_weights is loftq",
           "an object such as {\"loftq_bits\": 4}", value_of(object, "loftq_config"),
           "ValueError, or ImportError where scipy is missing");
  }
  const bool plain_init = config.init_lora_weights == "true" || config.init_lora_weights == "false";
  if (config.lora_bias && !plain_init) {
    refuse(ErrorCode::CF_VALUE, config, "lora_bias", "goes only with init_lora_weights true or false", "false", true,
           "ValueError");
  }
  if (config.lora_bias && config.use_dora) {
    refuse(ErrorCode::CF_VALUE, config, "lora_bias", "does not go with use_dora", "false", true, "ValueError");
  }
  for (const char* key : {"velora_config", "kasa_config"}) {
    const Json value = value_of(object, key);
    if (!value.is_null() && !value.is_object()) {
      refuse(ErrorCode::CF_VALUE, config, key, "the value has the wrong type", "an object or null", value,
             "ValueError");
    }
  }
  if (config.init_lora_weights == "orthogonal" && config.rank_pattern.empty() && config.r % 2 != 0) {
    refuse(ErrorCode::CF_VALUE, config, "r", "orthogonal initialization needs an even rank", "an even number", config.r,
           "ValueError");
  }
}

void check_pattern(const AdapterConfig& config, const std::string& pattern, const std::string& key) {
  try {
    const PythonRegex compiled(pattern, key);
  } catch (const Error& error) {
    ErrorDetail detail = error.detail();
    detail.file = config.file;
    throw Error(error.code(), std::move(detail));
  }
}

// Patterns, as PEFT puts them together: a mistake is reported as Python reports it.
void check_patterns(const AdapterConfig& config) {
  if (const auto* target = std::get_if<std::string>(&config.target_modules); target && !is_all_linear(*target)) {
    check_pattern(config, *target, "target_modules");
  }
  if (const auto* exclude = std::get_if<std::string>(&config.exclude_modules)) {
    check_pattern(config, *exclude, "exclude_modules");
  }
  for (const std::string& pattern : config.layers_pattern.value_or(std::vector<std::string>())) {
    check_pattern(config, ".*?\\." + pattern + "\\.(\\d+)\\.", "layers_pattern");
  }
  for (const std::string& name : config.modules_to_save.value_or(std::vector<std::string>())) {
    if (!is_plain_name(name)) check_pattern(config, "(^|.*\\.)" + name + "($|\\..*)", "modules_to_save");
  }
  std::size_t patterns = 0;
  for (const auto& [map, key] :
       {std::pair(&config.rank_pattern, "rank_pattern"), {&config.alpha_pattern, "alpha_pattern"}}) {
    for (const auto& [pattern, value] : *map) {
      if (is_plain_name(pattern)) continue;
      if (++patterns > kMaxPatterns) {
        refuse(ErrorCode::CF_VALUE, config, key, "too many regular expressions",
               fmt::format("at most {} that are not plain names", kMaxPatterns), map->size());
      }
      check_pattern(config, suffix_expression(pattern), key);
    }
  }
}

}  // namespace

void check_together(const AdapterConfig& config, const Json& object) {
  check_task(config);
  check_layers(config);
  check_variants(config, object);
  check_patterns(config);
}

}  // namespace peft::config
