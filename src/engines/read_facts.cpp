#include "engines/read_facts.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "config/peft_rules.h"
#include "engines/peft_conversion.h"
#include "layout/forms.h"
#include "layout/keys.h"
#include "model/path.h"

namespace peft::engines {
namespace {

// Segments of a dense module's path that say what it is a part of. The first row that fits decides.
struct PathRule {
  std::string_view fragment;
  Part part;
};
constexpr PathRule kPathRules[] = {
    {"shared_expert", Part::shared_experts},
    {"shared_mlp", Part::shared_experts},
    {"attn", Part::attention},
    {"attention", Part::attention},
    {"mlp", Part::dense_mlp},
    {"feed_forward", Part::dense_mlp},
};

Part part_of_dense(const Factor& factor, const Model& model) {
  if (factor.kind == FactorKind::embedding) return Part::embedding;
  const std::string& module = factor.site.module;
  if (model.kind(Generation::v5, module) == ModuleKind::other) return Part::router;
  if (model::is_output_name(module)) return Part::head;
  const auto rule = std::ranges::find_if(
      kPathRules, [&](const PathRule& row) { return module.find(row.fragment) != std::string::npos; });
  return rule == std::end(kPathRules) ? Part::other : rule->part;
}

Part part_of(const Factor& factor, const Model& model) {
  const bool on_experts = factor.site.expert >= 0 || !factor.site.parameter.empty();
  if (!on_experts) return part_of_dense(factor, model);
  if (factor.site.projection == Projection::down) return Part::experts_down;
  if (factor.site.projection == Projection::none) {
    const bool router = factor.site.expert < 0 && factor.site.parameter == "weight";
    return router ? Part::router : Part::experts_other;
  }
  return Part::experts_gate_up;
}

Part part_of_saved(const Adapter& adapter, const Extra& extra) {
  const std::string& module = extra.site.module;
  const std::string leaf(model::leaf(module));
  if (model::is_token_embedding_name(module) || model::is_output_name(module)) {
    return extra.suffix.starts_with("base_layer.") ? Part::embedding_below : Part::saved_embedding;
  }
  const auto& named = adapter.config.modules_to_save;
  if (leaf == "score" || leaf == "classifier") {
    const bool is_named = named && std::find(named->begin(), named->end(), leaf) != named->end();
    return is_named ? Part::named_head : Part::unnamed_head;
  }
  if (config::is_saved_by(config::task_heads(adapter.config), module)) return Part::other_head;
  const bool norm = leaf.ends_with("norm") || leaf.find("layernorm") != std::string::npos;
  return norm ? Part::saved_norm : Part::saved_module;
}

Part part_of(const Adapter& adapter, const Extra& extra) {
  switch (extra.kind) {
    case ExtraKind::magnitude:
      return Part::magnitude;
    case ExtraKind::lora_bias:
      return Part::lora_bias;
    case ExtraKind::token_delta:
      return Part::token_rows;
    case ExtraKind::base_bias:
      return Part::base_bias;
    case ExtraKind::saved_module:
      break;
  }
  return part_of_saved(adapter, extra);
}

void add_model_facts(const Model& model, AdapterFacts& facts) {
  facts.set(Fact::config_converted, !model.peft_config.empty());
  for (const Experts& experts : model.experts) {
    const ExpertsForm& form = *experts.form;
    if (!form.v4.empty()) facts.set(Fact::fused_in_v4);
    if (form.v4.empty() && form.v5.empty()) facts.set(Fact::no_fused_form);
    if (form.per_expert.empty()) facts.set(Fact::no_per_expert_form);
    const bool in_both = !experts.v4_module.empty() && !experts.v5_module.empty();
    const auto block = [](const std::string& module) { return model::leaf(model::parent(module)); };
    if (in_both && block(experts.v4_module) != block(experts.v5_module)) facts.set(Fact::renamed);
  }
}

void add_config_facts(const AdapterConfig& config, AdapterFacts& facts) {
  facts.set(Fact::rslora, config.use_rslora);
  facts.set(Fact::dora, config.use_dora);
  facts.set(Fact::dropout, config.lora_dropout != 0);
  facts.set(Fact::alpha_pattern, !config.alpha_pattern.empty());
  facts.set(Fact::base_changing_init, config::changes_base(config.init_lora_weights));
  const auto says = [&](std::string_view key) {
    const std::string value = config.value(key);
    return !value.empty() && value != "null" && value != "[]";
  };
  const bool parameters = config.target_parameters && !config.target_parameters->empty();
  facts.set(Fact::no_targets, std::holds_alternative<std::monostate>(config.target_modules) && !parameters);
  facts.set(Fact::alora, says("alora_invocation_tokens"));
  facts.set(Fact::layer_replication, says("layer_replication"));
}

// Kinds of modules and tensors, and how alike the pairs are.
void add_parts(const Adapter& adapter, const Model& model, const Reading& reading, AdapterFacts& facts) {
  std::set<std::int64_t> ranks, alphas;  // alphas in millionths: scale * rank is rounded
  std::set<double> scales;
  const auto add = [&](Part part, std::int64_t rank, const std::string& module) {
    PartCount& count = facts.parts[part];
    ++count.modules;
    count.rank = std::max(count.rank, rank);
    if (count.example.empty()) count.example = module;
  };
  for (const Factor& factor : reading.factors.factors) {
    const Part part = part_of(factor, model);
    add(part, factor.rank, factor.site.module);
    facts.rank = std::max(facts.rank, factor.rank);
    ranks.insert(factor.rank);
    scales.insert(factor.scale);
    alphas.insert(std::llround(factor.scale * static_cast<double>(factor.rank) * 1e6));
    const bool dense = factor.site.expert < 0 && part != Part::router && part != Part::experts_other;
    if (dense && config::is_named_like_projection(factor.site.module)) facts.set(Fact::namesakes);
    if (factor.site.expert < 0) continue;
    facts.set(Fact::gate, facts.has(Fact::gate) || factor.site.projection == Projection::gate);
    facts.set(Fact::up, facts.has(Fact::up) || factor.site.projection == Projection::up);
    facts.set(Fact::down, facts.has(Fact::down) || factor.site.projection == Projection::down);
  }
  for (const Extra& extra : reading.factors.extras) add(part_of(adapter, extra), 0, extra.site.module);
  facts.set(Fact::gate_or_up_alone, facts.has(Fact::gate) != facts.has(Fact::up));
  facts.set(Fact::all_projections, facts.has(Fact::gate) && facts.has(Fact::up) && facts.has(Fact::down));
  facts.set(Fact::uneven_ranks, ranks.size() > 1);
  facts.set(Fact::uneven_scales, scales.size() > 1);
  facts.set(Fact::uneven_alphas, alphas.size() > 1);
}

// Whether fused tensors lie as a PEFT version expects them. The first kind of experts of the model tells.
void add_orientation(const Model& model, Layout layout, AdapterFacts& facts) {
  if (model.experts.empty()) return;
  const Experts& experts = model.experts.front();
  bool any = false, square = true;  // one parameter that is not square gives the wrong orientation away
  for (const auto& parameter : experts.form->v5) {
    if (parameter.projections.empty()) continue;
    const Orientation own = layout::orientation_of(layout, parameter);
    if (own == Orientation::reversed) facts.set(Fact::unnatural);
    if (own != layout::orientation_of(Layout::peft_fused_0_19_0, parameter)) facts.set(Fact::reversed_in_0_19_0);
    if (own == layout::orientation_of(Layout::peft_fused, parameter)) continue;
    facts.set(Fact::reversed);
    const bool is_down = parameter.projections.front() == Projection::down;
    if (!(is_down ? facts.has(Fact::down) : facts.has(Fact::gate) || facts.has(Fact::up))) continue;
    const auto dims = layout::natural_dims(experts, parameter);
    any = true;
    square = square && dims.in == dims.out && dims.in != 0;
  }
  facts.set(Fact::reversed_square, any && square);
}

// A fused pair that is zero throughout has no factors, but it is there: where a layer has a pair for each parameter of
// its experts, no projection is missing.
void add_zero_pairs(const Adapter& adapter, const Model& model, const Reading& reading, AdapterFacts& facts) {
  std::map<const Experts*, std::set<std::pair<std::string_view, int>>> pairs;  // module and depth of each
  for (const TensorInfo& tensor : adapter.weights->tensors()) {
    const layout::Key key = layout::parse_key(tensor.name);
    if (key.kind != layout::KeyKind::lora_a) continue;
    const auto located = model.locate(key.module);
    if (located && located->experts != nullptr && located->expert < 0)
      pairs[located->experts].insert({key.module, key.depth});
  }
  std::map<std::string_view, std::size_t> others;  // pairs on parameters that are no projection
  for (const Factor& factor : reading.factors.factors) {
    if (!factor.site.parameter.empty() && factor.site.expert < 1) ++others[factor.site.module];
  }
  if (pairs.empty()) return;
  for (const auto& [experts, of] : pairs) {
    const auto projections = std::ranges::count_if(
        experts->form->v5, [](const ExpertsForm::Fused& parameter) { return !parameter.projections.empty(); });
    const auto other = others.find(experts_module(*experts));
    const std::size_t count = of.size() - (other == others.end() ? 0 : other->second);
    if (count < static_cast<std::size_t>(projections)) return;
  }
  for (const Fact fact : {Fact::gate, Fact::up, Fact::down, Fact::all_projections}) facts.set(fact);
  facts.set(Fact::gate_or_up_alone, false);
}

// Names of experts, as the file has them.
void add_names(const Adapter& adapter, const Model& model, const Reading& reading, AdapterFacts& facts) {
  for (const Factor& factor : reading.factors.factors) {
    if (factor.site.expert < 0) continue;
    const std::string module(layout::parse_key(adapter.weights->tensors()[factor.a.tensor].name).module);
    const auto located = model.locate(module);
    if (!located || located->experts == nullptr) continue;
    const Experts& experts = *located->experts;
    if (facts.has(Fact::per_expert)) {
      facts.set(Fact::foreign_names, experts.per_expert_module(factor.site.expert, factor.site.projection) != module);
      facts.set(Fact::w_names, model::leaf(module).starts_with("w"));
    } else if (facts.has(Fact::fused)) {
      const auto is_new = [&](const auto& p) { return experts.fused_module(Generation::v5, p) == module; };
      facts.set(Fact::v4_names, std::ranges::none_of(experts.form->v5, is_new));
    }
    return;  // all experts of a file are named alike
  }
}

// Whether the experts of MLX-LM's file lie in 2-D tensors, as before October 2025.
bool has_flat_experts(const Adapter& adapter, const Reading& reading) {
  return std::ranges::any_of(reading.factors.factors, [&](const Factor& factor) {
    return factor.site.expert >= 0 && adapter.weights->tensors()[factor.a.tensor].shape.size() == 2;
  });
}

// Forms that are not fused tensors of PEFT.
constexpr Fact kOwnForms[] = {Fact::gguf,          Fact::mlx,       Fact::stacked, Fact::trainer_stacked,
                              Fact::experts_apart, Fact::per_expert};

}  // namespace

void set_layout(AdapterFacts& facts, Layout layout, const Model& model) {
  for (const Fact fact :
       {Fact::gguf, Fact::mlx, Fact::old_mlx, Fact::stacked, Fact::trainer_stacked, Fact::two_ranks,
        Fact::experts_apart, Fact::per_expert, Fact::fused, Fact::grouped, Fact::peft_0_18, Fact::reversed,
        Fact::reversed_square, Fact::reversed_in_0_19_0, Fact::unnatural, Fact::v4_names, Fact::foreign_names,
        Fact::w_names})
    facts.set(fact, false);
  facts.set(Fact::gguf, layout == Layout::gguf);
  facts.set(Fact::mlx, layout == Layout::mlx);
  if (!facts.has(Fact::experts)) return;
  facts.set(Fact::stacked, layout == Layout::tinker);
  facts.set(Fact::experts_apart, layout == Layout::ktransformers);
  facts.set(Fact::two_ranks, layout == Layout::sglang);
  facts.set(Fact::trainer_stacked,
            layout == Layout::megatron_bridge || layout == Layout::sglang || layout == Layout::veomni);
  facts.set(Fact::per_expert, layout == Layout::peft_per_expert);
  const auto has = [&](Fact fact) { return facts.has(fact); };
  if (std::ranges::any_of(kOwnForms, has)) return;
  facts.set(Fact::fused);
  facts.set(Fact::grouped, layout == Layout::unsloth_grouped);
  facts.set(Fact::peft_0_18, layout == Layout::peft_fused_0_18);
  add_orientation(model, layout, facts);
}

AdapterFacts facts_of(const Adapter& adapter, const Model& model, const Reading& reading) {
  AdapterFacts facts;
  facts.model_type = model.model_type;
  add_model_facts(model, facts);
  add_config_facts(adapter.config, facts);
  add_parts(adapter, model, reading, facts);
  facts.set(Fact::experts, reading.has_experts);
  if (reading.has_experts) add_zero_pairs(adapter, model, reading, facts);
  set_layout(facts, reading.layout, model);
  facts.set(Fact::gguf, adapter.form == AdapterForm::gguf);
  facts.set(Fact::mlx, adapter.form == AdapterForm::mlx);
  facts.set(Fact::old_mlx, facts.has(Fact::mlx) && has_flat_experts(adapter, reading));
  add_names(adapter, model, reading, facts);
  if (facts.has(Fact::per_expert)) add_conversion_facts(adapter, model, reading, facts);
  return facts;
}

}  // namespace peft::engines
