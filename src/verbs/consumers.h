// Which programs read an adapter right, refuse it, or misread it silently. Measured on the real programs
// (golden/consumers, golden/convert); versions are in the names.
#pragma once

#include <vector>

#include "peft/verbs.h"
#include "verbs/consumer_tensors.h"

namespace peft::verbs {

// What of an adapter the verdicts depend on.
struct ConsumerFacts {
  Layout layout = Layout::peft_per_expert;
  bool has_experts = false;
  std::set<TensorKind> kinds;  // of tensors that are more than plain LoRA
  std::string model_type;
  std::string peft_config;         // PEFT's own conversion table; "" none
  bool experts_renamed = false;    // transformers 5 calls the experts otherwise than 4 does
  bool fused_in_v4 = false;        // the family has fused parameters in transformers 4 too
  bool reversed_square = false;    // reversed for today's PEFT, and every shape fits both ways
  bool reversed_for_peft = false;  // not the orientation PEFT >= 0.19.1 expects
  bool use_rslora = false, use_dora = false;
  bool dropout = false;
  bool gate = false, up = false, down = false;  // projections of experts that are there
  bool unequal_expert_ranks = false, unequal_expert_scales = false, missing_experts = false;
  bool alpha_pattern = false;
  bool expert_namesakes = false;  // dense modules called as an expert's projection
};

ConsumerFacts consumer_facts(const Input& input);
std::vector<InspectReport::Consumer> consumer_verdicts(const ConsumerFacts& facts);

}  // namespace peft::verbs
