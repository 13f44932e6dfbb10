// What a run will train, told before its first step; and the error for experts that a config seems to mean and misses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peft/model.h"

namespace peft::train {

// All targets that are alike but for numbers in their names.
struct CoverageRow {
  std::string name;             // "model.layers.*.mlp.experts.gate_up_proj"
  std::int64_t layers = 0;      // how many there are
  std::int64_t experts = 0;     // in each; 0: no experts
  std::int64_t rank = 0;        // of the first
  double scale = 0;             // of the first
  bool uneven = false;          // others have another rank or scale
  std::int64_t parameters = 0;  // of all
};
struct Coverage {
  std::vector<CoverageRow> rows;  // in the order of the model
  std::int64_t layers_with_experts = 0, layers_with_trained_experts = 0;
  std::vector<std::string> unmatched;  // entries of target_modules and target_parameters that match nothing
  std::vector<std::string> missed;     // entries of target_modules that name experts' projections and hit none
};
Coverage coverage_of(const AdapterConfig& config, const ResolvedTargets& resolved, const ModuleTree& tree,
                     const Model& model);

// Throws CF_TARGET for an entry that matches nothing: PEFT would train the others without a word.
void require_matches(const Coverage& coverage);
// Throws CF_TARGET where the config seems to mean experts and trains none. `flag`: what allows it, for the hint.
void require_experts(const Coverage& coverage, const Model& model, const std::string& flag);

// Bytes that training adds to the base: fp32 weights and gradients, two fp32 states.
struct TrainingBytes {
  std::uint64_t weights = 0, gradients = 0, optimizer = 0;
  std::uint64_t sum() const { return weights + gradients + optimizer; }
};
TrainingBytes bytes_for(std::int64_t trainable_parameters);

}  // namespace peft::train
