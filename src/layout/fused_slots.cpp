#include "layout/fused_slots.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "layout/fused_forms.h"

namespace peft::layout {
namespace {

using Parameters = std::vector<const ExpertsForm::Fused*>;

// The parameters that are registered on this very module, in order of registration.
Parameters parameters_of(const Context& context, const Experts& experts, std::string_view module) {
  const bool v4_first = context.model.base_is_v4_only;
  for (const auto g :
       v4_first ? std::array{Generation::v4, Generation::v5} : std::array{Generation::v5, Generation::v4}) {
    Parameters found;
    for (const auto& parameter : g == Generation::v4 ? experts.form->v4 : experts.form->v5) {
      if (experts.fused_module(g, parameter) == module) found.push_back(&parameter);
    }
    if (!found.empty()) return found;
  }
  return {};
}

bool is_target(const std::vector<std::string>& targets, const std::string& parameter) {
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    return parameter == target || parameter.ends_with("." + target);
  });
}

bool fits(const Context& context, const Experts& experts, const ExpertsForm::Fused& parameter, const Slot& slot) {
  const Dims dims = natural_dims(experts, parameter);
  const std::int64_t a = context.tensor(slot.a).shape[1], b = context.tensor(slot.b).shape[0];
  const auto same = [](std::int64_t known, std::int64_t seen) { return known == 0 || known == seen; };
  const bool natural = same(dims.in, a) && same(dims.out, b);
  if (parameter.dims.size() == 2) return natural;
  return natural || (same(dims.in, b) && same(dims.out, a));
}

// The parameters the group's wrappers stand for, innermost (first registered) first.
Parameters choose(const Context& context, const Experts& experts, const std::vector<const Slot*>& group) {
  const Slot& outer = *group.back();
  const Parameters all = parameters_of(context, experts, outer.module);
  const auto& targets = context.adapter.config.target_parameters;
  if (targets && !targets->empty()) {
    Parameters targeted;
    for (const auto* parameter : all) {
      if (is_target(*targets, std::string(outer.module) + "." + parameter->name)) targeted.push_back(parameter);
    }
    if (targeted.size() == group.size()) return targeted;
    context.fail(ErrorCode::LO_SHAPE, outer.a, "the nesting of wrappers is not the one target_parameters gives",
                 fmt::format("{} parameters of {}", targeted.size(), outer.module),
                 fmt::format("{} pairs", group.size()), "is the config the one of this file?");
  }
  // No target_parameters (NeMo, hand-made files): every choice in order of registration whose shapes fit.
  std::vector<Parameters> choices;
  for (unsigned bits = 1; bits < (1U << std::min<std::size_t>(all.size(), 8)); ++bits) {
    Parameters choice;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if ((bits >> i & 1U) != 0) choice.push_back(all[i]);
    }
    bool good = choice.size() == group.size();
    for (std::size_t i = 0; good && i < group.size(); ++i) good = fits(context, experts, *choice[i], *group[i]);
    if (good) choices.push_back(std::move(choice));
  }
  if (choices.size() == 1) return choices.front();
  std::string names;
  for (const auto& choice : choices) names += (names.empty() ? "" : " or ") + choice.front()->name;
  context.fail(
      choices.empty() ? ErrorCode::LO_SHAPE : ErrorCode::LO_LAYOUT, outer.a,
      choices.empty() ? "no parameter of the experts has this shape" : "the file does not say which parameter this is",
      choices.empty() ? std::string("shapes of the model's parameters") : names,
      fmt::format("A {}, B {}", shape_text(context.tensor(outer.a).shape), shape_text(context.tensor(outer.b).shape)),
      choices.empty() ? "is this the right base model?"
                      : "add target_parameters to adapter_config.json, or give --base");
}

// Number of experts and rank: rows of A are experts x rank.
void count_experts(const Context& context, FusedSlot& fused) {
  const TensorInfo& a = context.tensor(fused.slot->a);
  const TensorInfo& b = context.tensor(fused.slot->b);
  if (a.shape.size() != 2 || b.shape.size() != 2 || a.shape[0] != b.shape[1] || a.shape[0] == 0 || a.shape[1] == 0 ||
      b.shape[0] == 0) {
    context.fail(ErrorCode::LO_SHAPE, fused.slot->a, "lora_A and lora_B do not fit each other",
                 "A [E * r, width], B [width, r * E]",
                 fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape)));
  }
  fused.a_width = a.shape[1];
  fused.b_width = b.shape[0];
  const std::int64_t rows = a.shape[0];
  if (fused.parameter->dims.size() == 2) {
    const Scale scale = scale_of(context, fused.slot->a, rows, fused.name);
    fused.rank = rows;
    fused.scale = scale.scale;
    return;
  }
  const auto shape = fused.experts->fused_shape(*fused.parameter);
  std::int64_t experts = shape.empty() || context.model.num_experts_assumed ? 0 : shape[0];
  if (experts == 0) experts = rows / std::max<std::int64_t>(1, context.adapter.config.rank_for(fused.name));
  if (experts <= 0 || rows % experts != 0) {
    context.fail(ErrorCode::LO_SHAPE, fused.slot->a, "the rows of lora_A are no multiple of the number of experts",
                 fmt::format("{} experts x rank", std::max<std::int64_t>(experts, 1)), fmt::format("{} rows", rows),
                 "is this the right base model?");
  }
  fused.num_experts = experts;
  fused.rank = rows / experts;
  fused.scale = scale_of(context, fused.slot->a, fused.rank, fused.name).scale;
}

}  // namespace

std::vector<FusedSlot> assign_parameters(const Context& context, const std::vector<Slot>& slots,
                                         const std::vector<Model::Located>& located) {
  std::vector<FusedSlot> result;
  for (std::size_t i = 0; i < slots.size();) {
    std::vector<const Slot*> group;
    std::size_t j = i;
    for (; j < slots.size() && slots[j].module == slots[i].module; ++j) group.push_back(&slots[j]);
    const Experts& experts = *located[i].experts;
    for (const Slot* slot : group) {
      pair_of(context, *slot);  // dtypes and shapes
      if (slot->magnitude == kNoTensor && slot->b_bias == kNoTensor) continue;
      context.fail(ErrorCode::CF_UNSUP, slot->a, "DoRA and lora_bias do not exist on parameters");
    }
    const Parameters chosen = located[i].fused != nullptr && group.size() == 1 ? Parameters{located[i].fused}
                                                                               : choose(context, experts, group);
    for (std::size_t k = 0; k < group.size(); ++k) {
      FusedSlot fused{group[k], &experts, chosen[k], std::string(group[k]->module) + "." + chosen[k]->name};
      count_experts(context, fused);
      result.push_back(std::move(fused));
    }
    i = j;
  }
  return result;
}

}  // namespace peft::layout
