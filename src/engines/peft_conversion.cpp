#include "engines/peft_conversion.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "layout/keys.h"
#include "pythonic/python_regex.h"

namespace peft::engines {
namespace {

// The experts of one layer, as PEFT stacks them.
struct Layer {
  std::set<std::int64_t> ranks;  // of one projection
  std::set<double> scales;
  std::int64_t count = 0;
};
using Layers = std::map<std::string, std::map<Projection, Layer>>;

Layers layers_of(const Reading& reading) {
  Layers layers;
  for (const Factor& factor : reading.factors.factors) {
    if (factor.site.expert < 0) continue;
    Layer& layer = layers[factor.site.module][factor.site.projection];
    layer.ranks.insert(factor.rank);
    layer.scales.insert(factor.scale);
    ++layer.count;
  }
  return layers;
}

bool is_scale(const Layer& layer, double scale) {
  return std::ranges::all_of(layer.scales,
                             [&](double s) { return std::abs(s - scale) <= 1e-9 * std::max(std::abs(s), 1e-300); });
}

// The config after PEFT's conversion, as far as ranks and scales go. A pattern of the user's that still matches wins.
AdapterConfig converted(const AdapterConfig& config) {
  AdapterConfig after = config;
  after.rank_pattern.emplace_back(R"(.*\.gate_up_proj)", Number{2.0 * static_cast<double>(config.r), true});
  after.alpha_pattern.emplace_back(R"(.*\.gate_up_proj)", Number{2.0 * config.lora_alpha.value, false});
  return after;
}

void check_ranks_and_scales(const AdapterConfig& config, const Experts& experts,
                            const std::map<Projection, Layer>& layer, AdapterFacts& facts) {
  for (const auto& [projection, part] : layer) {
    const bool missing = experts.num_experts != 0 && part.count != experts.num_experts;
    if (part.ranks.size() > 1 || missing) facts.set(Fact::conversion_ranks);
  }
  for (const ExpertsForm::Fused& parameter : experts.form->v5) {
    const std::string name = experts.fused_module(Generation::v5, parameter) + "." + parameter.name;
    std::int64_t rank = 0;
    for (const Projection projection : parameter.projections) {
      if (const auto at = layer.find(projection); at != layer.end()) rank += *at->second.ranks.begin();
    }
    if (rank == 0) continue;
    if (rank != config.rank_for(name)) facts.set(Fact::conversion_ranks);
    const double scale = config.scale_for(name, rank);
    for (const Projection projection : parameter.projections) {
      const auto at = layer.find(projection);
      if (at == layer.end() || is_scale(at->second, scale)) continue;
      facts.set(projection == Projection::down ? Fact::conversion_scale_down : Fact::conversion_scale_gate_up);
    }
  }
}

// PEFT looks for the old names below the experts, without an expert's number.
bool pattern_finds_experts(const std::string& pattern, const Experts& experts) {
  const PythonRegex regex(pattern);
  return std::ranges::any_of(experts.form->per_expert, [&](const ExpertsForm::PerExpert& module) {
    return regex.fullmatches(experts.v4_module + "." + module.name) ||
           regex.fullmatches(experts.v5_module + "." + module.name);
  });
}

void check_targets(const AdapterConfig& config, const Experts& experts, AdapterFacts& facts) {
  const auto* pattern = std::get_if<std::string>(&config.target_modules);
  if (pattern != nullptr) {
    facts.set(Fact::string_targets);
    if (*pattern != "all-linear" && !pattern_finds_experts(*pattern, experts)) facts.set(Fact::pattern_misses_experts);
  }
}

}  // namespace

void add_conversion_facts(const Adapter& adapter, const Model& model, const Reading& reading, AdapterFacts& facts) {
  const Layers layers = layers_of(reading);
  const AdapterConfig& config = adapter.config;
  const AdapterConfig after = converted(config);
  bool uncovered = false;
  for (const Experts& experts : model.experts) {
    const auto found = layers.find(experts_module(experts));
    if (found == layers.end()) {
      uncovered = true;
      continue;
    }
    check_targets(config, experts, facts);
    check_ranks_and_scales(after, experts, found->second, facts);
  }
  if (uncovered && config.init_lora_weights == "false") facts.set(Fact::uncovered_layers_random);
  for (const Extra& extra : reading.factors.extras) {
    if (extra.kind != ExtraKind::saved_module || extra.site.expert >= 0) continue;
    const auto key = layout::parse_key(adapter.weights->tensors()[extra.tensor].name);
    if (layout::unwrap(key.module).module != extra.site.module) facts.set(Fact::saved_renamed);
  }
}

}  // namespace peft::engines
