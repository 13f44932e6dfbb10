// Which modules and parameters a config puts LoRA on, as PEFT decides it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "peft/config.h"
#include "peft/model.h"

namespace peft {

struct Target {
  std::string name;  // module, or parameter ("….experts.gate_up_proj")
  bool parameter = false;
  std::int64_t rank = 0;
  double alpha = 0, scaling = 0;
  std::vector<std::int64_t> shape;  // of the weight
  std::vector<std::int64_t> a, b;   // shapes of lora_A and lora_B as this PEFT version makes them
  std::string key;                  // place on disk below base_model.model.: "….experts.base_layer"
  std::string pattern;              // which entry matched, for explanations
};

struct ResolvedTargets {
  std::vector<Target> targets;  // sorted by name
  std::vector<std::string> modules_to_save;
  std::vector<std::string>
      warnings;                // PEFT's own, and ours (entries and patterns that match nothing, precedence traps)
  AdapterConfig config_after;  // the config PEFT would save: all-linear resolved, targets minimised, ...
  std::vector<std::string> excluded;
};

// `as_of`: the PEFT version whose rules hold (layer index rule, swap rule, errors); default the newest known.
// Throws CF_TARGET when PEFT finds nothing or refuses a target (ErrorDetail::problem says it in our words,
// ErrorDetail::python_error has the name of PEFT's exception class).
ResolvedTargets resolve_targets(const AdapterConfig& config, const ModuleTree& tree, const Model& model,
                                Generation generation, std::optional<AdapterConfig::Version> as_of = std::nullopt);

// print_trainable_parameters, character for character.
std::string trainable_line(std::int64_t trainable, std::int64_t all);

}  // namespace peft
