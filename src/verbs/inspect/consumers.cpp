#include "verbs/inspect/consumers.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "config/peft_rules.h"
#include "layout/forms.h"
#include "layout/keys.h"
#include "verbs/convert.h"

namespace peft::verbs {
namespace {

using Consumer = InspectReport::Consumer;
using enum TensorKind;
using enum Program;

struct ProgramInfo {
  Program program;
  std::string_view name;
  Facts facts = 0;  // of the way it runs
};
constexpr ProgramInfo kPrograms[] = {
    {peft_now, "PEFT 0.21.2, transformers 5"},  // 5.24, which converts per-expert files while loading them
    {peft_old, "PEFT 0.18.1, transformers 4"},
    {vllm, "vLLM 0.32"},
    {vllm, "vLLM 0.32, enable_mixed_moe_lora_format", fact::mixed_format},
    {llama_cpp, "llama.cpp convert_lora_to_gguf.py"},
    {mlx_lm, "MLX-LM 0.32"},
};

constexpr std::string_view kPackingIgnored = "the packing of lora_B is not looked at";
constexpr std::string_view kOtherGeneration = "written for another generation", kOneAlpha = "one alpha for all tensors";

constexpr LayoutRow kLayoutRows[] = {
    {peft_now, fact::namesakes | fact::config_converted, 0, kWrong,
     "dense or shared modules named like an expert's projection lose their LoRA",
     "golden/convert/deepseek_v3-shared-and-dense"},
    {peft_now, 0, fact::experts, kRight, "", "golden/convert/README.md"},
    {peft_now, fact::grouped, 0, kWrong, kPackingIgnored, "golden/consumers/unsloth/gpt_oss/grouped-by-expert"},
    {peft_now, fact::reversed_square, 0, kWrong, "square parameters are read transposed",
     "PEFT 0.21.2, save_and_load.py: only shapes are compared"},
    {peft_now, fact::reversed, 0, kRefuses, "size mismatch: the pairs are the other way round",
     "golden/consumers/mixtral/fused-0.18.1"},
    {peft_now, fact::fused, 0, kRight, "", "golden/consumers/mixtral/fused"},
    {peft_now, fact::dora, 0, kRefuses, "DoRA does not exist on fused experts", "golden/convert/mixtral-dora"},
    {peft_now, fact::dropout, 0, kRefuses, "lora_dropout is not 0", "golden/convert/mixtral-dropout"},
    {peft_now, 0, fact::config_converted, kWrong,
     "tensors of this model type are converted, the config is not: experts are dropped", "golden/convert/jamba-plain"},
    {peft_now, fact::gate_or_up_alone, 0, kRefuses, "gate without up, or up without gate",
     "golden/convert/mixtral-gate-only"},
    {peft_now, fact::gate, fact::down, kWrong,
     "keys for a wrapper that does not exist; only a warning about missing keys", "golden/convert/mixtral-gate-up"},
    {peft_now, fact::uneven_experts, 0, kRefuses, "experts with different ranks, or none",
     "golden/consumers/mixtral/perexpert-mixedrank"},
    {peft_now, fact::rslora, 0, kWrong, "gate and up become sqrt(2) too strong",
     "golden/consumers/mixtral/perexpert-rslora"},
    {peft_now, fact::uneven_scales, 0, kWrong, "alpha patterns of experts are lost",
     "golden/consumers/mixtral/perexpert-alphapat"},

    {peft_old, 0, fact::fused, kRight, "", "golden/consumers/mixtral/perexpert"},
    {peft_old, 0, fact::fused_in_v4, kRefuses, "transformers 4 has no such parameters in this model",
     "golden/consumers/mixtral/fused-0.18.1"},
    {peft_old, fact::peft_0_18, 0, kRight, "", "golden/consumers/gpt_oss/fused-0.18.1"},
    {peft_old, fact::grouped, 0, kWrong, kOtherGeneration, "golden/consumers/unsloth/gpt_oss/grouped-by-expert"},
    {peft_old, 0, 0, kRefuses, kOtherGeneration, "golden/consumers/gpt_oss/fused-0.19.0"},

    {vllm, 0, fact::fused, kRight, "", "golden/consumers/qwen3_moe/perexpert"},
    {vllm, fact::renamed, 0, kWrong, "experts are looked for under transformers 4's name: their LoRA is dropped",
     "golden/consumers/mixtral/fused"},
    {vllm, fact::grouped, 0, kWrong, kPackingIgnored, "golden/consumers/unsloth/gpt_oss/grouped-by-expert"},
    {vllm, fact::reversed, 0, kRefuses, "sizes do not fit: the pairs are the other way round",
     "golden/consumers/gpt_oss/fused-0.19.0", "llama4"},
    {vllm, 0, fact::mixed_format, kRefuses, "asks for enable_mixed_moe_lora_format", "golden/consumers/qwen3_moe/fused",
     "gpt_oss"},
    {vllm, 0, fact::all_projections, kRefuses, "needs gate_up_proj and down_proj both",
     "golden/consumers/gpt_oss/fused-gateup-only"},

    {llama_cpp, fact::fused, 0, kRefuses, "fused experts are not known", "golden/consumers/mixtral/fused"},
    {llama_cpp, fact::rslora, 0, kWrong, "the scale is taken as alpha / r",
     "golden/consumers/mixtral/perexpert-rslora"},
    {llama_cpp, fact::alpha_pattern, 0, kWrong, kOneAlpha, "golden/consumers/mixtral/perexpert-alphapat"},
    {llama_cpp, fact::uneven_alphas, 0, kWrong, kOneAlpha, "golden/consumers/mixtral/perexpert-alphapat"},

    {mlx_lm, 0, 0, kRefuses, "reads its own format only (adapters.safetensors, num_layers)",
     "golden/consumers/README.md"},
};

constexpr std::string_view kPeftNow = "PEFT 0.21.2, save_and_load.py", kPeftOld = "PEFT 0.18.1, save_and_load.py";
constexpr std::string_view kHelper = "vLLM 0.32.0, lora/peft_helper.py", kNames = "vLLM 0.32.0, lora/utils.py";
constexpr std::string_view kGguf = "llama.cpp, convert_lora_to_gguf.py";
constexpr std::string_view kNotLora = "a tensor that is neither lora_A nor lora_B ends it";
constexpr std::string_view kUnsupported = "a tensor that is neither lora_A nor lora_B: unsupported LoRA weight";

constexpr TensorRow kTensorRows[] = {
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

Consumer by_layout(const ProgramInfo& program, const ConsumerFacts& adapter) {
  const Facts facts = adapter.facts | program.facts;
  const auto fits = [&](const LayoutRow& row) {
    const bool has_facts = (facts & row.all_of) == row.all_of && (facts & row.none_of) == 0;
    return row.program == program.program && has_facts &&
           (row.except_family.empty() || row.except_family != adapter.model_type);
  };
  const auto row = std::ranges::find_if(kLayoutRows, fits);
  if (row == std::end(kLayoutRows)) return {std::string(program.name), std::string(kRight), {}};
  return {std::string(program.name), std::string(row->verdict), std::string(row->why)};
}

// Layout and tensors both have a say. A program that refuses never gets as far as being wrong.
Consumer verdict_of(const ProgramInfo& program, const ConsumerFacts& adapter) {
  Consumer consumer = by_layout(program, adapter);
  const TensorRow* row = worst_row(program.program, adapter.kinds);
  if (row == nullptr || consumer.verdict == kRefuses) return consumer;
  if (consumer.verdict == kWrong && row->verdict == kWrong) return consumer;
  consumer.verdict = row->verdict, consumer.why = row->why;
  return consumer;
}

// "block_sparse_moe" of "model.layers.0.block_sparse_moe.experts".
std::string parent_name(const std::string& module) {
  const auto end = module.rfind('.');
  if (end == std::string::npos) return {};
  const std::string parent = module.substr(0, end);
  return parent.substr(parent.rfind('.') + 1);
}

Facts model_facts(const Model& model) {
  Facts facts = model.peft_config.empty() ? 0 : fact::config_converted;
  for (const Experts& experts : model.experts) {
    if (!experts.form->v4.empty()) facts |= fact::fused_in_v4;
    const bool in_both = !experts.v4_module.empty() && !experts.v5_module.empty();
    if (in_both && parent_name(experts.v4_module) != parent_name(experts.v5_module)) facts |= fact::renamed;
  }
  return facts;
}

Facts config_facts(const AdapterConfig& config) {
  return (config.use_rslora ? fact::rslora : 0) | (config.use_dora ? fact::dora : 0) |
         (config.lora_dropout != 0 ? fact::dropout : 0) | (config.alpha_pattern.empty() ? 0 : fact::alpha_pattern);
}

// Dense modules that PEFT takes for experts. A router is a parameter after the conversion, and PEFT leaves it alone.
Facts dense_facts(const Input& input) {
  for (const Factor& factor : input.reading.factors.factors) {
    if (factor.site.expert >= 0 || !is_named_like_projection(factor.site.module)) continue;
    if (input.model.kind(Generation::v5, factor.site.module) != ModuleKind::other) return fact::namesakes;
  }
  return 0;
}

// Which projections of experts have LoRA, and whether the experts are alike.
Facts expert_facts(const Input& input) {
  std::map<Projection, std::set<std::int64_t>> ranks;
  std::set<double> scales;
  std::set<std::int64_t> alphas;  // in millionths: scale * rank is rounded
  std::map<std::string, std::map<Projection, std::int64_t>> counts;
  for (const Factor& factor : input.reading.factors.factors) {
    if (factor.site.expert < 0) continue;
    ranks[factor.site.projection].insert(factor.rank);
    scales.insert(factor.scale);
    alphas.insert(std::llround(factor.scale * static_cast<double>(factor.rank) * 1e6));
    ++counts[factor.site.module][factor.site.projection];
  }
  const bool gate = ranks.contains(Projection::gate), up = ranks.contains(Projection::up),
             down = ranks.contains(Projection::down);
  bool uneven = false;
  for (const auto& [projection, values] : ranks)
    uneven = uneven || values.size() > 1 || *values.begin() != input.adapter.config.r;
  for (const Experts& experts : input.model.experts) {
    const auto found = counts.find(experts_module(experts));
    if (found == counts.end() || experts.num_experts == 0) continue;
    for (const auto& [projection, count] : found->second) uneven = uneven || count != experts.num_experts;
  }
  return (gate ? fact::gate : 0) | (up ? fact::up : 0) | (down ? fact::down : 0) |
         (gate != up ? fact::gate_or_up_alone : 0) | (gate && up && down ? fact::all_projections : 0) |
         (uneven ? fact::uneven_experts : 0) | (scales.size() > 1 ? fact::uneven_scales : 0) |
         (alphas.size() > 1 ? fact::uneven_alphas : 0);
}

// Whether fused tensors lie as today's PEFT expects them. The first kind of experts of the model tells.
Facts orientation_facts(const Input& input, Facts projections) {
  if (input.model.experts.empty()) return 0;
  const Experts& experts = input.model.experts.front();
  const Layout layout = input.reading.layout;
  bool reversed = false, square = false;
  for (const auto& parameter : experts.form->v5) {
    if (parameter.projections.empty()) continue;
    if (layout::orientation_of(layout, parameter) == layout::orientation_of(Layout::peft_fused, parameter)) continue;
    reversed = true;
    const bool is_down = parameter.projections.front() == Projection::down;
    const bool adapted = is_down ? (projections & fact::down) != 0 : (projections & (fact::gate | fact::up)) != 0;
    const auto dims = layout::natural_dims(experts, parameter);
    if (adapted) square = dims.in == dims.out;
  }
  return (reversed ? fact::reversed : 0) | (square ? fact::reversed_square : 0);
}

}  // namespace

std::span<const LayoutRow> layout_rows() { return kLayoutRows; }
std::span<const TensorRow> tensor_rows() { return kTensorRows; }

const TensorRow* worst_row(Program program, const std::set<TensorKind>& kinds) {
  const TensorRow* worst = nullptr;
  for (const TensorRow& row : kTensorRows) {
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

ConsumerFacts consumer_facts(const Input& input) {
  const Layout layout = input.reading.layout;
  ConsumerFacts result{
      .facts = model_facts(input.model) | config_facts(input.adapter.config) | dense_facts(input) | expert_facts(input),
      .model_type = input.model.model_type,
      .kinds = tensor_kinds(input)};
  if (!input.reading.has_experts) return result;
  result.facts |= fact::experts;
  if (layout == Layout::peft_per_expert) return result;
  result.facts |= fact::fused | orientation_facts(input, result.facts);
  if (layout == Layout::unsloth_grouped) result.facts |= fact::grouped;
  if (layout == Layout::peft_fused_0_18) result.facts |= fact::peft_0_18;
  return result;
}

std::vector<Consumer> consumer_verdicts(const ConsumerFacts& facts) {
  std::vector<Consumer> verdicts;
  for (const ProgramInfo& program : kPrograms) verdicts.push_back(verdict_of(program, facts));
  return verdicts;
}

}  // namespace peft::verbs
