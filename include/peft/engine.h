// What programs that read adapters (vLLM, SGLang, llama.cpp, ...) make of one: the terms in which inspect() and
// doctor() answer. The programs and what is known of them are rows of data/engines.json; `peft engines` lists them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace peft::engines {

// Kinds of modules with LoRA, and kinds of tensors that are more than LoRA.
enum class Part : std::uint8_t {
  attention,
  experts_gate_up,
  experts_down,
  experts_other,  // parameters that are neither: biases of gpt_oss
  router,
  shared_experts,
  dense_mlp,
  embedding,
  head,
  other,
  magnitude,        // DoRA
  lora_bias,        // lora_B.bias
  named_head,       // score or classifier, named in modules_to_save
  unnamed_head,     // the same where modules_to_save is null
  other_head,       // qa_outputs, pre_classifier, a classifier of several layers
  saved_module,     // any other module of modules_to_save
  saved_norm,       // the same of a norm
  saved_embedding,  // embed_tokens or lm_head, saved whole
  embedding_below,  // what LoRA on an embedding is added to: embed_tokens.base_layer.weight
  token_rows,       // trainable_tokens_delta
  base_bias,        // bias = "all" or "lora_only"
};
struct PartInfo {
  Part part;
  std::string_view name, text;  // "experts_gate_up", "experts, gate and up"
};
std::span<const PartInfo> part_info();
const PartInfo& info(Part part);
std::optional<Part> parse_part(std::string_view name);

// What an engine makes of a part of an adapter.
enum class Verdict : std::uint8_t {
  binds,
  unknown,         // nobody has run it, and its source was not read
  dropped,         // loads, and the part is not there; nothing is said
  wrong_scale,     // loads, and the part is too strong or too weak
  misread,         // loads, and the part is another function
  wrong_names,     // as `dropped`, because the names are not those that the engine looks for
  rank_too_large,  // refused
  refused,
};
std::string_view name(Verdict verdict);  // "binds", "dropped silently", ...

// What that means for the whole, from the best to the worst.
enum class Outcome : std::uint8_t { right, unknown, wrong, refuses };
std::string_view name(Outcome outcome);  // "reads it right", "not known", "silently wrong", "refuses it"
Outcome outcome_of(Verdict verdict);

}  // namespace peft::engines
