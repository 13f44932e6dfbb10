#include "engines/facts.h"

#include <algorithm>

namespace peft::engines {
namespace {

constexpr FactInfo kFacts[] = {
    {Fact::gguf, "gguf", "a GGUF file, as llama.cpp reads it"},
    {Fact::mlx, "mlx", "a folder as MLX-LM writes it"},
    {Fact::old_mlx, "old_mlx", "MLX-LM's older form: 2-D lora_a of experts"},
    {Fact::stacked, "stacked", "3-D tensors w1, w2, w3 that hold all experts (Tinker)"},
    {Fact::trainer_stacked, "trainer_stacked",
     "3-D tensors that hold all experts, as Megatron-Bridge, VeOmni and SGLang name them"},
    {Fact::two_ranks, "two_ranks", "lora_A of gate and up has a rank for each of them, one after the other (SGLang)"},
    {Fact::experts_apart, "experts_apart", "experts lie in a file of their own (KTransformers)"},
    {Fact::experts, "experts", "LoRA on experts"},
    {Fact::per_expert, "per_expert", "one pair per expert and projection"},
    {Fact::fused, "fused", "the experts of a layer lie in one PEFT tensor"},
    {Fact::grouped, "grouped", "lora_B is grouped by expert"},
    {Fact::peft_0_18, "peft_0_18", "the layout of PEFT 0.17 and 0.18"},
    {Fact::reversed, "reversed", "fused, and not the way round that PEFT 0.19.1 and later expect"},
    {Fact::reversed_square, "reversed_square", "reversed, and every shape fits both ways"},
    {Fact::reversed_in_0_19_0, "reversed_in_0_19_0", "fused, and not the way round that PEFT 0.19.0 expects"},
    {Fact::unnatural, "unnatural", "fused, and lora_A has the output width"},
    {Fact::foreign_names, "foreign_names", "experts have names that transformers does not give them in this model"},
    {Fact::v4_names, "v4_names", "fused parameters have names that transformers 5 does not give them"},
    {Fact::w_names, "w_names", "experts are named w1, w2, w3"},
    {Fact::fused_in_v4, "fused_in_v4", "transformers 4 has the fused parameters too"},
    {Fact::no_fused_form, "no_fused_form", "the experts of this model are modules of their own in every transformers"},
    {Fact::no_per_expert_form, "no_per_expert_form", "no transformers has a module per expert in this model"},
    {Fact::renamed, "renamed", "transformers 5 calls the experts otherwise than 4 does"},
    {Fact::config_converted, "config_converted", "PEFT converts configs of this model type to transformers 5"},
    {Fact::namesakes, "namesakes", "dense or shared modules are named like an expert's projection"},
    {Fact::gate, "gate", "LoRA on the experts' gate"},
    {Fact::up, "up", "LoRA on the experts' up"},
    {Fact::down, "down", "LoRA on the experts' down"},
    {Fact::gate_or_up_alone, "gate_or_up_alone", "gate without up, or up without gate"},
    {Fact::all_projections, "all_projections", "gate, up and down of the experts all have LoRA"},
    {Fact::uneven_ranks, "uneven_ranks", "ranks differ within the file"},
    {Fact::uneven_scales, "uneven_scales", "scales differ within the file"},
    {Fact::uneven_alphas, "uneven_alphas", "alpha differs within the file"},
    {Fact::dora, "dora", "use_dora"},
    {Fact::rslora, "rslora", "use_rslora"},
    {Fact::dropout, "dropout", "lora_dropout is not 0"},
    {Fact::alpha_pattern, "alpha_pattern", "alpha_pattern is not empty"},
    {Fact::alora, "alora", "alora_invocation_tokens"},
    {Fact::base_changing_init, "base_changing_init",
     "an initialization that changes the base model (PiSSA, OLoRA, ...)"},
    {Fact::layer_replication, "layer_replication", "layer_replication"},
    {Fact::string_targets, "string_targets", "target_modules is a string"},
    {Fact::no_targets, "no_targets", "target_modules is null"},
    {Fact::pattern_misses_experts, "pattern_misses_experts",
     "target_modules is a pattern that matches experts only with their number"},
    {Fact::uncovered_layers_random, "uncovered_layers_random",
     "some layers' experts have no LoRA, and init_lora_weights is false"},
    {Fact::saved_renamed, "saved_renamed", "a saved module has another name in transformers 5"},
    {Fact::conversion_ranks, "conversion_ranks", "ranks or missing experts do not fit what PEFT's conversion builds"},
    {Fact::conversion_scale_gate_up, "conversion_scale_gate_up", "PEFT's conversion gives gate and up another scale"},
    {Fact::conversion_scale_down, "conversion_scale_down", "PEFT's conversion gives down another scale"},
    {Fact::transformers_4, "transformers_4", "the engine runs on transformers 4"},
    {Fact::peft_0_19_0, "peft_0_19_0", "the engine is PEFT 0.19.0"},
    {Fact::mixed_format, "mixed_format", "vLLM runs with enable_mixed_moe_lora_format"},
};

constexpr PartInfo kParts[] = {
    {Part::attention, "attention", "attention"},
    {Part::experts_gate_up, "experts_gate_up", "experts, gate and up"},
    {Part::experts_down, "experts_down", "experts, down"},
    {Part::experts_other, "experts_other", "experts, other parameters"},
    {Part::router, "router", "router"},
    {Part::shared_experts, "shared_experts", "shared experts"},
    {Part::dense_mlp, "dense_mlp", "dense MLP"},
    {Part::embedding, "embedding", "embedding"},
    {Part::head, "head", "output head"},
    {Part::other, "other", "other modules"},
    {Part::magnitude, "magnitude", "DoRA magnitudes"},
    {Part::lora_bias, "lora_bias", "biases of lora_B"},
    {Part::named_head, "named_head", "score or classifier, in modules_to_save"},
    {Part::unnamed_head, "unnamed_head", "score or classifier, not in modules_to_save"},
    {Part::other_head, "other_head", "another task head"},
    {Part::saved_module, "saved_module", "saved modules"},
    {Part::saved_norm, "saved_norm", "saved norms"},
    {Part::saved_embedding, "saved_embedding", "embedding or output head, saved whole"},
    {Part::embedding_below, "embedding_below", "the embedding below its LoRA"},
    {Part::token_rows, "token_rows", "trained token rows"},
    {Part::base_bias, "base_bias", "trained biases of the base model"},
};

}  // namespace

std::span<const FactInfo> fact_info() { return kFacts; }
std::span<const PartInfo> part_info() { return kParts; }
const PartInfo& info(Part part) { return *std::ranges::find(kParts, part, &PartInfo::part); }

std::optional<Fact> parse_fact(std::string_view name) {
  const auto row = std::ranges::find(kFacts, name, &FactInfo::name);
  return row == std::end(kFacts) ? std::nullopt : std::optional(row->fact);
}

std::optional<Part> parse_part(std::string_view name) {
  const auto row = std::ranges::find(kParts, name, &PartInfo::name);
  return row == std::end(kParts) ? std::nullopt : std::optional(row->part);
}

}  // namespace peft::engines
