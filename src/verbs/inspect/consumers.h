// Which programs read an adapter right, refuse it, or misread it silently. Measured on the real programs
// (golden/consumers, golden/convert); versions are in the names.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "peft/verbs.h"

namespace peft::verbs {

// What of an adapter the verdicts depend on.
struct ConsumerFacts {
  Layout layout = Layout::peft_per_expert;
  bool has_experts = false;
  std::set<TensorKind> kinds;  // of tensors that are more than plain LoRA
  std::string model_type;
  std::string peft_config;         // PEFT's own conversion table; "" none
  bool experts_renamed = false;    // transformers 5 calls the experts otherwise than 4 does
  bool fused_in_v4 = false;        // the family has fused parameters in transformers 4 too
  bool reversed_square = false;    // reversed for today's PEFT, and every shape fits both ways
  bool reversed_for_peft = false;  // not the orientation PEFT >= 0.19.1 expects
  bool use_rslora = false, use_dora = false;
  bool dropout = false;
  bool gate = false, up = false, down = false;  // projections of experts that are there
  bool unequal_expert_ranks = false, unequal_expert_scales = false, missing_experts = false;
  bool alpha_pattern = false;
  bool expert_namesakes = false;  // dense modules called as an expert's projection
};

ConsumerFacts consumer_facts(const Input& input);
std::vector<InspectReport::Consumer> consumer_verdicts(const ConsumerFacts& facts);

inline constexpr std::string_view kRight = "reads it right", kRefuses = "refuses it", kWrong = "silently wrong";

enum class Program : std::uint8_t { peft_now, peft_old, vllm, llama_cpp };
inline constexpr std::size_t kPrograms = 4;

// A kind of tensor, or what the config makes of the factors.
enum class TensorKind : std::uint8_t {
  magnitude,        // DoRA
  lora_bias,        // lora_B.bias
  named_head,       // score or classifier, named in modules_to_save
  unnamed_head,     // the same where modules_to_save is null
  other_head,       // qa_outputs, pre_classifier, a classifier of several layers
  saved_module,     // any other module of modules_to_save
  saved_norm,       // the same of a norm
  saved_embedding,  // embed_tokens or lm_head, saved whole
  embedding_below,  // what LoRA on an embedding is added to: embed_tokens.base_layer.weight
  embedding_lora,   // lora_embedding_A and _B
  token_rows,       // trainable_tokens_delta
  base_bias,        // bias = "all" or "lora_only"
  router_lora,
  alora,  // alora_invocation_tokens
};
inline constexpr std::size_t kTensorKinds = 14;

struct ConsumerRow {
  TensorKind kind;
  Program program;
  std::string_view verdict, why;
  std::string_view source;  // a golden case, or the program's own source
};
std::span<const ConsumerRow> consumer_rows();
// The row that says most against the program: one that refuses, then one that is silently wrong. nullptr: none.
const ConsumerRow* worst_row(Program program, const std::set<TensorKind>& kinds);

std::set<TensorKind> tensor_kinds(const Input& input);

}  // namespace peft::verbs
