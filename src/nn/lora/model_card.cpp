#include "nn/lora/model_card.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace peft::nn {
namespace {

// A JSON string is a YAML string too, whatever is in it.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string model_card(const AdapterConfig& config) {
  const std::string base = config.base_model_name_or_path.value_or("");
  std::string card = "---\n";
  if (!base.empty()) card += fmt::format("base_model: {}\n", quoted(base));
  card += "library_name: peft\n";
  if (config.task_type == "CAUSAL_LM") card += "pipeline_tag: text-generation\n";
  card += "tags:\n";
  if (!base.empty()) card += fmt::format("- {}\n", quoted("base_model:adapter:" + base));
  card +=
      "- lora\n- transformers\n---\n\nA LoRA adapter, to be loaded on top of its base model.\n\n### Framework "
      "versions\n\n";
  card += fmt::format("- PEFT {}\n", config.peft_version.value_or("0.21.2"));
  return card;
}

}  // namespace peft::nn
