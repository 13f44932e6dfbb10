// What of an adapter the verdicts of engines depend on: facts, which rules of data/engines.json name, and the kinds of
// modules and tensors that it has. Names, shapes and the config tell them; no tensor is read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "peft/engine.h"

namespace peft::engines {

// A set of facts is a sum of bits; fact_info() has their names and meanings.
using Facts = std::uint64_t;
enum class Fact : std::uint8_t {
  // the form of the file
  gguf,
  mlx,
  old_mlx,
  stacked,
  trainer_stacked,
  two_ranks,
  experts_apart,
  experts,
  per_expert,
  fused,
  grouped,
  peft_0_18,
  reversed,
  reversed_square,
  reversed_in_0_19_0,
  unnatural,
  foreign_names,
  v4_names,
  w_names,
  // the model
  fused_in_v4,
  no_fused_form,
  no_per_expert_form,
  renamed,
  config_converted,
  namesakes,
  // which projections of experts have LoRA, and whether the experts are alike
  gate,
  up,
  down,
  gate_or_up_alone,
  all_projections,
  uneven_ranks,
  uneven_scales,
  uneven_alphas,
  // the config
  dora,
  rslora,
  dropout,
  alpha_pattern,
  alora,
  base_changing_init,
  layer_replication,
  // what PEFT's conversion to transformers 5 makes of a per-expert file
  string_targets,
  no_targets,
  pattern_misses_experts,
  uncovered_layers_random,
  saved_renamed,
  conversion_ranks,
  conversion_scale_gate_up,
  conversion_scale_down,
  // the way the engine runs
  transformers_4,
  peft_0_19_0,
  mixed_format,
};
constexpr Facts bit(Fact fact) { return Facts{1} << static_cast<unsigned>(fact); }

struct FactInfo {
  Fact fact;
  std::string_view name, meaning;
};
std::span<const FactInfo> fact_info();
std::optional<Fact> parse_fact(std::string_view name);

struct PartCount {
  std::int64_t modules = 0;
  std::int64_t rank = 0;  // the largest
  std::string example;    // one module's path
};
struct AdapterFacts {
  Facts facts = 0;
  std::string model_type;
  std::map<Part, PartCount> parts;
  std::int64_t rank = 0;  // the largest of all pairs, as the file holds them

  bool has(Fact fact) const { return (facts & bit(fact)) != 0; }
  void set(Fact fact, bool on = true) { facts = on ? facts | bit(fact) : facts & ~bit(fact); }
};
}  // namespace peft::engines
