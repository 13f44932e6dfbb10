#include "verbs/consumers.h"

#include <algorithm>
#include <map>
#include <set>

#include "layout/forms.h"

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
    const auto at = counts.find(experts_module(experts));
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

}  // namespace peft::verbs
