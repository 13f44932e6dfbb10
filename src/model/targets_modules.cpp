#include <algorithm>
#include <set>

#include "model/path.h"
#include "model/target_match.h"
#include "model/target_resolver.h"

namespace peft::model {
namespace {

// Types whose out_proj and conv1d PEFT refuses as targets.
const std::set<std::string, std::less<>> kMambaTypes = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"};

}  // namespace

void TargetResolver::target_modules() {
  const TargetMatcher matcher(after(), version_);
  for (const Visit& visit : visits_) {
    const auto found = matcher.check(visit.name);
    if (found.answer == TargetMatcher::Answer::excluded) result_.excluded.push_back(visit.name);
    if (found.answer == TargetMatcher::Answer::yes) {
      used_.insert(found.pattern);
      add_module(visit, found.pattern);
    }
  }
}

void TargetResolver::add_module(const Visit& visit, const std::string& pattern) {
  if (visit.module == nullptr || visit.module->kind == ModuleKind::other) {
    refuse_target("ValueError", visit.name, "LoRA cannot sit on a module of this kind",
                  "name Linear, Embedding or Conv modules; for experts and routers use target_parameters");
  }
  const std::string_view last = leaf(visit.name);
  if ((last == "out_proj" || last == "conv1d") && kMambaTypes.contains(model_.model_type)) {
    refuse_target("ValueError", visit.name, "PEFT refuses this module in Mamba models");
  }
  Target target = named_target(visit.name, pattern);
  const Module& module = *visit.module;
  target.shape = module.weight;
  target.key = visit.name;
  correct_fan(module.kind);
  shape_module(module, target);
  shape_blocks(module, target);
  module_names_.insert(visit.name);
  result_.targets.push_back(std::move(target));
}

// PEFT sets the flag of the whole config to what the layer at hand needs.
void TargetResolver::correct_fan(ModuleKind kind) {
  const bool conv1d = kind == ModuleKind::conv1d;
  if ((kind != ModuleKind::linear && !conv1d) || after().fan_in_fan_out == conv1d) return;
  after().fan_in_fan_out = conv1d;
  result_.warnings.push_back(conv1d ? "fan_in_fan_out is false but a target is a Conv1D; set to true"
                                    : "fan_in_fan_out is true but a target is a Linear; set to false");
}

void TargetResolver::shape_module(const Module& module, Target& target) {
  const auto& weight = module.weight;
  if (weight.size() < 2) return;  // shape unknown
  const std::int64_t rank = target.rank;
  switch (module.kind) {
    case ModuleKind::linear:
      target.a = {rank, weight[1]}, target.b = {weight[0], rank};
      return;
    case ModuleKind::conv1d:
      target.a = {rank, weight[0]}, target.b = {weight[1], rank};
      return;
    case ModuleKind::embedding:
      target.a = {rank, weight[0]}, target.b = {weight[1], rank};
      return;
    case ModuleKind::conv:
      target.a = weight;
      target.a[0] = rank;
      target.b.assign(weight.size(), 1);
      target.b[0] = weight[0];
      target.b[1] = rank;
      return;
    case ModuleKind::other:
      return;
  }
}

// BD-LoRA: one of the two factors is stored as the blocks of its diagonal.
void TargetResolver::shape_blocks(const Module& module, Target& target) {
  if (!blocks_ || module.kind != ModuleKind::linear) return;
  const BlockSide side = blocks_->side_of(target.name);
  if (side == BlockSide::none || target.a.size() != 2 || target.b.size() != 2) return;
  std::vector<std::int64_t>& shape = side == BlockSide::a ? target.a : target.b;
  if (shape[0] % blocks_->count != 0 || shape[1] % blocks_->count != 0)
    refuse_target("ValueError", target.name, "the factor cannot be cut into nblocks blocks");
  shape[1] /= blocks_->count;
}

Target TargetResolver::named_target(const std::string& name, const std::string& pattern) const {
  Target target;
  target.name = name;
  target.pattern = pattern;
  target.rank = config_.rank_for(name);
  if (target.rank <= 0) refuse_target("ValueError", name, "the rank is not positive");
  if (config_.init_lora_weights == "orthogonal" && target.rank % 2 != 0) {
    refuse_target("ValueError", name, "orthogonal initialisation needs an even rank");
  }
  target.alpha = config_.alpha_for(name);
  target.scaling = config_.scale_for(name, target.rank);
  return target;
}

}  // namespace peft::model
