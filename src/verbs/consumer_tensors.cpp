#include "verbs/consumer_tensors.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "config/peft_rules.h"
#include "layout/keys.h"

namespace peft::verbs {
namespace {

constexpr std::string_view kPeftNow = "PEFT 0.21.2, save_and_load.py", kPeftOld = "PEFT 0.18.1, save_and_load.py";
constexpr std::string_view kHelper = "vLLM 0.32.0, lora/peft_helper.py", kNames = "vLLM 0.32.0, lora/utils.py";
constexpr std::string_view kGguf = "llama.cpp, convert_lora_to_gguf.py";
constexpr std::string_view kNotLora = "a tensor that is neither lora_A nor lora_B ends it";
constexpr std::string_view kUnsupported = "a tensor that is neither lora_A nor lora_B: unsupported LoRA weight";

using enum TensorKind;
using enum Program;

constexpr ConsumerRow kRows[] = {
    {magnitude, peft_now, kRight, "", kPeftNow},
    {magnitude, peft_old, kRight, "", kPeftOld},
    {magnitude, vllm, kRefuses, "DoRA is not supported", kHelper},
    {magnitude, llama_cpp, kRefuses, "DoRA is not known", kGguf},
    {lora_bias, peft_now, kRight, "", kPeftNow},
    {lora_bias, peft_old, kRight, "", kPeftOld},
    {lora_bias, vllm, kRefuses, "lora_bias is not supported", kHelper},
    {lora_bias, llama_cpp, kRefuses, kNotLora, kGguf},
    {named_head, peft_now, kRight, "", "tests/heads/llama-merged"},
    {named_head, peft_old, kRight, "", kPeftOld},
    {named_head, vllm, kRight, "", kNames},
    {named_head, llama_cpp, kRefuses, kNotLora, kGguf},
    {unnamed_head, peft_now, kRight, "", "tests/heads/llama-merged"},
    {unnamed_head, peft_old, kRight, "", kPeftOld},
    {unnamed_head, vllm, kRefuses, "a head that modules_to_save does not name is taken for LoRA", kNames},
    {unnamed_head, llama_cpp, kRefuses, kNotLora, kGguf},
    {other_head, peft_now, kRight, "", kPeftNow},
    {other_head, peft_old, kRight, "", kPeftOld},
    {other_head, vllm, kRefuses, "of heads only score.weight and classifier.weight are known", kNames},
    {other_head, llama_cpp, kRefuses, kNotLora, kGguf},
    {saved_module, peft_now, kRight, "", kPeftNow},
    {saved_module, peft_old, kRight, "", kPeftOld},
    {saved_module, vllm, kRefuses, "modules_to_save may name classifier and score, nothing else", kHelper},
    {saved_module, llama_cpp, kRefuses, kNotLora, kGguf},
    {saved_norm, peft_now, kRight, "", kPeftNow},
    {saved_norm, peft_old, kRight, "", kPeftOld},
    {saved_norm, vllm, kRefuses, "modules_to_save may name classifier and score, nothing else", kHelper},
    {saved_norm, llama_cpp, kWrong, "norms are written to the GGUF file, and the loader skips them",
     "llama.cpp, convert_lora_to_gguf.py and llama-adapter.cpp"},
    {saved_embedding, peft_now, kRight, "", kPeftNow},
    {saved_embedding, peft_old, kRight, "", kPeftOld},
    {saved_embedding, vllm, kRefuses, "an embedding that is saved whole is not supported", kNames},
    {saved_embedding, llama_cpp, kRefuses, kNotLora, kGguf},
    {embedding_below, peft_now, kRight, "", kPeftNow},
    {embedding_below, peft_old, kRight, "", kPeftOld},
    {embedding_below, vllm, kRight, "", kNames},
    {embedding_below, llama_cpp, kRight, "", kGguf},
    {embedding_lora, peft_now, kRight, "", kPeftNow},
    {embedding_lora, peft_old, kRight, "", kPeftOld},
    {embedding_lora, vllm, kRight, "", kNames},
    {embedding_lora, llama_cpp, kRight, "", kGguf},
    {token_rows, peft_now, kRight, "", kPeftNow},
    {token_rows, peft_old, kRight, "", kPeftOld},
    {token_rows, vllm, kRefuses, kUnsupported, kNames},
    {token_rows, llama_cpp, kRefuses, kNotLora, kGguf},
    {base_bias, peft_now, kRight, "", kPeftNow},
    {base_bias, peft_old, kRight, "", kPeftOld},
    {base_bias, vllm, kRefuses, kUnsupported, kNames},
    {base_bias, llama_cpp, kRefuses, kNotLora, kGguf},
    {router_lora, peft_now, kRight, "", "golden/consumers/mixtral/perexpert-router"},
    {router_lora, peft_old, kRight, "", "golden/consumers/mixtral/perexpert-router"},
    {router_lora, vllm, kRight, "", "golden/consumers/mixtral/perexpert-router"},
    {router_lora, llama_cpp, kRight, "", "golden/consumers/mixtral/perexpert-router"},
    {alora, peft_now, kRight, "", "PEFT 0.21.2, tuners/lora/variants.py"},
    {alora, peft_old, kRight, "", "PEFT 0.18.1, tuners/lora/variants.py"},
    {alora, vllm, kRefuses, "aLoRA is not supported", kHelper},
    {alora, llama_cpp, kRight, "", kGguf},
};

TensorKind kind_of_saved(const Input& input, const Extra& extra) {
  const std::string& module = extra.site.module;
  const std::string leaf = module.substr(module.rfind('.') + 1);
  if (leaf == "embed_tokens" || leaf == "lm_head") {
    return extra.suffix.starts_with("base_layer.") ? embedding_below : saved_embedding;
  }
  const auto& named = input.adapter.config.modules_to_save;
  if (leaf == "score" || leaf == "classifier") {
    const bool is_named = named && std::find(named->begin(), named->end(), leaf) != named->end();
    return is_named ? named_head : unnamed_head;
  }
  if (config::is_saved_by(config::task_heads(input.adapter.config), module)) return other_head;
  return leaf.ends_with("norm") || leaf.find("layernorm") != std::string::npos ? saved_norm : saved_module;
}

TensorKind kind_of(const Input& input, const Extra& extra) {
  switch (extra.kind) {
    case ExtraKind::magnitude:
      return magnitude;
    case ExtraKind::lora_bias:
      return lora_bias;
    case ExtraKind::token_delta:
      return token_rows;
    case ExtraKind::base_bias:
      return base_bias;
    case ExtraKind::saved_module:
      break;
  }
  return kind_of_saved(input, extra);
}

// Worse answers are greater.
int weight(std::string_view verdict) { return verdict == kRefuses ? 2 : verdict == kWrong ? 1 : 0; }

}  // namespace

std::span<const ConsumerRow> consumer_rows() { return kRows; }

const ConsumerRow* worst_row(Program program, const std::set<TensorKind>& kinds) {
  const ConsumerRow* worst = nullptr;
  for (const ConsumerRow& row : kRows) {
    if (row.program != program || !kinds.contains(row.kind) || row.verdict == kRight) continue;
    if (worst == nullptr || weight(row.verdict) > weight(worst->verdict)) worst = &row;
  }
  return worst;
}

std::set<TensorKind> tensor_kinds(const Input& input) {
  std::set<TensorKind> kinds;
  for (const Extra& extra : input.reading.factors.extras) kinds.insert(kind_of(input, extra));
  for (const Factor& factor : input.reading.factors.factors) {
    if (factor.kind == FactorKind::embedding) kinds.insert(embedding_lora);
    const bool router =
        factor.site.expert < 0 && input.model.kind(Generation::v5, factor.site.module) == ModuleKind::other;
    if (router) kinds.insert(router_lora);
  }
  const std::string tokens = input.adapter.config.value("alora_invocation_tokens");
  if (!tokens.empty() && tokens != "null" && tokens != "[]") kinds.insert(alora);
  return kinds;
}

}  // namespace peft::verbs
