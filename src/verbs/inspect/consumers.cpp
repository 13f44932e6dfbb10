#include "verbs/inspect/consumers.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "config/task_heads.h"
#include "layout/fused_forms.h"
#include "layout/keys.h"

namespace peft::verbs {
namespace {

using Consumer = InspectReport::Consumer;

Consumer verdict(std::string_view name, std::string_view verdict, std::string why = {}) {
  return {std::string(name), std::string(verdict), std::move(why)};
}

bool fused(const ConsumerFacts& f) { return f.has_experts && f.layout != Layout::peft_per_expert; }

// PEFT 0.21.2 on transformers 5.24, which converts per-expert files while loading them.
Consumer peft_now(const ConsumerFacts& f) {
  constexpr std::string_view kName = "PEFT 0.21.2, transformers 5";
  if (f.expert_namesakes && !f.peft_config.empty()) {
    return verdict(kName, kWrong, "dense or shared modules named like an expert's projection lose their LoRA");
  }
  if (!f.has_experts) return verdict(kName, kRight);
  if (fused(f)) {
    if (f.layout == Layout::unsloth_grouped) return verdict(kName, kWrong, "the packing of lora_B is not looked at");
    if (f.reversed_square) return verdict(kName, kWrong, "square parameters are read transposed");
    if (f.reversed_for_peft) return verdict(kName, kRefuses, "size mismatch: the pairs are the other way round");
    return verdict(kName, kRight);
  }
  if (f.use_dora) return verdict(kName, kRefuses, "DoRA does not exist on fused experts");
  if (f.dropout) return verdict(kName, kRefuses, "lora_dropout is not 0");
  if (f.peft_config.empty())
    return verdict(kName, kWrong, "tensors of this model type are converted, the config is not: experts are dropped");
  if (f.gate != f.up) return verdict(kName, kRefuses, "gate without up, or up without gate");
  if (f.gate && !f.down)
    return verdict(kName, kWrong, "keys for a wrapper that does not exist; only a warning about missing keys");
  if (f.missing_experts || f.unequal_expert_ranks)
    return verdict(kName, kRefuses, "experts with different ranks, or none");
  if (f.use_rslora) return verdict(kName, kWrong, "gate and up become sqrt(2) too strong");
  if (f.unequal_expert_scales) return verdict(kName, kWrong, "alpha patterns of experts are lost");
  return verdict(kName, kRight);
}

Consumer peft_old(const ConsumerFacts& f) {
  constexpr std::string_view kName = "PEFT 0.18.1, transformers 4";
  if (!fused(f)) return verdict(kName, kRight);
  if (!f.fused_in_v4) return verdict(kName, kRefuses, "transformers 4 has no such parameters in this model");
  if (f.layout == Layout::peft_fused_0_18) return verdict(kName, kRight);
  return verdict(kName, f.layout == Layout::unsloth_grouped ? kWrong : kRefuses, "written for another generation");
}

Consumer vllm(const ConsumerFacts& f, bool mixed) {
  const std::string_view name = mixed ? "vLLM 0.32, enable_mixed_moe_lora_format" : "vLLM 0.32";
  if (!f.has_experts || !fused(f)) return verdict(name, kRight);
  if (f.experts_renamed)
    return verdict(name, kWrong, "experts are looked for under transformers 4's name: their LoRA is dropped");
  if (f.layout == Layout::unsloth_grouped) return verdict(name, kWrong, "the packing of lora_B is not looked at");
  if (f.reversed_for_peft && f.model_type != "llama4")
    return verdict(name, kRefuses, "sizes do not fit: the pairs are the other way round");
  const bool needs_flag = f.model_type != "gpt_oss";
  if (needs_flag && !mixed) return verdict(name, kRefuses, "asks for enable_mixed_moe_lora_format");
  if (!(f.gate && f.up && f.down)) return verdict(name, kRefuses, "needs gate_up_proj and down_proj both");
  return verdict(name, kRight);
}

Consumer llama_cpp(const ConsumerFacts& f) {
  constexpr std::string_view kName = "llama.cpp convert_lora_to_gguf.py";
  if (fused(f)) return verdict(kName, kRefuses, "fused experts are not known");
  if (f.use_rslora) return verdict(kName, kWrong, "the scale is taken as alpha / r");
  if (f.alpha_pattern || f.unequal_expert_scales) return verdict(kName, kWrong, "one alpha for all tensors");
  return verdict(kName, kRight);
}

// Layout and tensors both have a say: who refuses never gets as far as being wrong.
Consumer with_tensors(Consumer by_layout, Program program, const ConsumerFacts& facts) {
  const ConsumerRow* row = worst_row(program, facts.kinds);
  if (row == nullptr || by_layout.verdict == kRefuses) return by_layout;
  if (by_layout.verdict == kWrong && row->verdict == kWrong) return by_layout;
  return verdict(by_layout.name, row->verdict, std::string(row->why));
}

// "block_sparse_moe" of "model.layers.0.block_sparse_moe.experts".
std::string above(const std::string& module) {
  const auto end = module.rfind('.');
  if (end == std::string::npos) return {};
  const std::string parent = module.substr(0, end);
  return parent.substr(parent.rfind('.') + 1);
}

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

ConsumerFacts consumer_facts(const Input& input) {
  ConsumerFacts f;
  const AdapterConfig& config = input.adapter.config;
  f.layout = input.reading.layout;
  f.has_experts = input.reading.has_experts;
  f.kinds = tensor_kinds(input);
  f.model_type = input.model.model_type;
  f.peft_config = input.model.peft_config;
  f.use_rslora = config.use_rslora, f.use_dora = config.use_dora, f.dropout = config.lora_dropout != 0;
  f.alpha_pattern = !config.alpha_pattern.empty();
  for (const Experts& experts : input.model.experts) {
    f.fused_in_v4 = f.fused_in_v4 || !experts.form->v4.empty();
    const bool both = !experts.v4_module.empty() && !experts.v5_module.empty();
    f.experts_renamed = f.experts_renamed || (both && above(experts.v4_module) != above(experts.v5_module));
  }
  static const std::set<std::string, std::less<>> kProjections = {"gate", "gate_proj", "up_proj", "down_proj",
                                                                  "w1",   "w2",        "w3"};
  std::map<Projection, std::set<std::int64_t>> ranks;
  std::map<Projection, std::set<double>> scales;
  std::map<std::string, std::map<Projection, std::int64_t>> counts;
  for (const Factor& factor : input.reading.factors.factors) {
    if (factor.site.expert < 0) {
      const std::string& m = factor.site.module;
      // A router is a parameter after the conversion and no longer a target that PEFT rewrites.
      const bool router = input.model.kind(Generation::v5, m) == ModuleKind::other;
      f.expert_namesakes = f.expert_namesakes || (!router && kProjections.count(m.substr(m.rfind('.') + 1)) != 0);
      continue;
    }
    f.gate |= factor.site.projection == Projection::gate, f.up |= factor.site.projection == Projection::up;
    f.down |= factor.site.projection == Projection::down;
    ranks[factor.site.projection].insert(factor.rank);
    scales[factor.site.projection].insert(factor.scale);
    ++counts[factor.site.module][factor.site.projection];
  }
  for (const auto& [projection, values] : ranks)
    f.unequal_expert_ranks |= values.size() > 1 || (*values.begin()) != config.r;
  std::set<double> all_scales;
  for (const auto& [projection, values] : scales) all_scales.insert(values.begin(), values.end());
  f.unequal_expert_scales = all_scales.size() > 1;
  for (const Experts& experts : input.model.experts) {
    const auto at = counts.find(layout::experts_module(experts));
    if (at == counts.end()) continue;
    for (const auto& [projection, count] : at->second)
      f.missing_experts |= experts.num_experts != 0 && count != experts.num_experts;
  }
  if (fused(f)) {
    for (const Experts& experts : input.model.experts) {
      for (const auto& parameter : experts.form->v5) {
        if (parameter.projections.empty()) continue;
        const bool same =
            layout::orientation_of(f.layout, parameter) == layout::orientation_of(Layout::peft_fused, parameter);
        const auto dims = layout::natural_dims(experts, parameter);
        const bool adapted = parameter.projections.front() == Projection::down ? f.down : f.gate || f.up;
        f.reversed_for_peft |= !same;
        if (adapted && !same && dims.in != dims.out)
          f.reversed_square = false;
        else if (adapted && !same)
          f.reversed_square = true;
      }
      break;
    }
  }
  return f;
}

std::vector<InspectReport::Consumer> consumer_verdicts(const ConsumerFacts& facts) {
  return {with_tensors(peft_now(facts), Program::peft_now, facts),
          with_tensors(peft_old(facts), Program::peft_old, facts),
          with_tensors(vllm(facts, false), Program::vllm, facts),
          with_tensors(vllm(facts, true), Program::vllm, facts),
          with_tensors(llama_cpp(facts), Program::llama_cpp, facts),
          verdict("MLX-LM 0.32", kRefuses, "reads its own format only (adapters.safetensors, num_layers)")};
}

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
