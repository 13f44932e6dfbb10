// Which programs read an adapter right, refuse it, or misread it silently. Two tables of data, which tests walk: one by
// the layout of the experts, one by kinds of tensors that are more than plain LoRA. A row names the golden case or the
// source that shows it. The answers were measured on the real programs (tests/golden/consumers, tests/golden/convert).
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/verbs.h"

namespace peft::verbs {

inline constexpr std::string_view kRight = "reads it right", kRefuses = "refuses it", kWrong = "silently wrong";

enum class Program : std::uint8_t { peft_now, peft_old, vllm, llama_cpp, mlx_lm };

// A fact about an adapter that verdicts depend on. A set of them is a sum of bits.
using Facts = std::uint32_t;
namespace fact {
inline constexpr Facts experts = 1 << 0;           // LoRA on experts
inline constexpr Facts fused = 1 << 1;             // the experts of a layer lie in one tensor
inline constexpr Facts grouped = 1 << 2;           // lora_B is grouped by expert
inline constexpr Facts peft_0_18 = 1 << 3;         // the layout of PEFT 0.18
inline constexpr Facts fused_in_v4 = 1 << 4;       // the family has fused parameters in transformers 4 too
inline constexpr Facts renamed = 1 << 5;           // transformers 5 calls the experts otherwise than 4 does
inline constexpr Facts reversed = 1 << 6;          // fused, not in the orientation that PEFT >= 0.19.1 expects
inline constexpr Facts reversed_square = 1 << 7;   // reversed, and every shape fits both ways
inline constexpr Facts config_converted = 1 << 8;  // PEFT converts configs of this model type to transformers 5
inline constexpr Facts namesakes = 1 << 9;         // dense modules named like an expert's projection
inline constexpr Facts dora = 1 << 10, rslora = 1 << 11, dropout = 1 << 12, alpha_pattern = 1 << 13;
inline constexpr Facts gate = 1 << 14, up = 1 << 21, down = 1 << 15;  // projections of experts that have LoRA
inline constexpr Facts gate_or_up_alone = 1 << 16;
inline constexpr Facts all_projections = 1 << 17;
inline constexpr Facts uneven_experts = 1 << 18;  // ranks of experts differ, or some experts have no LoRA
inline constexpr Facts uneven_scales = 1 << 19;
inline constexpr Facts uneven_alphas = 1 << 22;  // alpha of experts differs; ranks alone may differ without it
inline constexpr Facts mixed_format = 1 << 20;   // of the program: vLLM runs with enable_mixed_moe_lora_format
}  // namespace fact

// The first row of a program that fits decides; where none fits the program reads the adapter right.
struct LayoutRow {
  Program program;
  Facts all_of;   // the row fits where the adapter has all of these,
  Facts none_of;  // none of these,
  std::string_view verdict, why;
  std::string_view source;              // a golden case, or the program's own source
  std::string_view except_family = {};  // and is not of this model type
};
std::span<const LayoutRow> layout_rows();

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
inline constexpr std::size_t kTensorPrograms = 4;  // MLX-LM refuses every file of PEFT

struct TensorRow {
  TensorKind kind;
  Program program;
  std::string_view verdict, why;
  std::string_view source;
};
std::span<const TensorRow> tensor_rows();
// The row that says most against the program: one that refuses, then one that is silently wrong. nullptr: none.
const TensorRow* worst_row(Program program, const std::set<TensorKind>& kinds);

std::set<TensorKind> tensor_kinds(const Input& input);

// What of an adapter the verdicts depend on.
struct ConsumerFacts {
  Facts facts = 0;
  std::string model_type;
  std::set<TensorKind> kinds;
};
ConsumerFacts consumer_facts(const Input& input);
std::vector<InspectReport::Consumer> consumer_verdicts(const ConsumerFacts& facts);

}  // namespace peft::verbs
