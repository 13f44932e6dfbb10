#include "layout/forms.h"

#include <algorithm>

namespace peft::layout {

bool swaps(Layout layout, const ExpertsForm::Fused& parameter) {
  switch (layout) {
    case Layout::peft_fused_0_18:
      return false;
    case Layout::peft_fused_0_19_0:
      return parameter.is_transposed.value_or(false);
    default:
      return !parameter.is_transposed.value_or(false);
  }
}

Orientation orientation_of(Layout layout, const ExpertsForm::Fused& parameter) {
  const bool natural = parameter.in_out ? !swaps(layout, parameter) : swaps(layout, parameter);
  return natural ? Orientation::natural : Orientation::reversed;
}

bool is_fused(Layout layout) {
  return layout == Layout::peft_fused || layout == Layout::peft_fused_0_19_0 || layout == Layout::peft_fused_0_18 ||
         layout == Layout::unsloth_grouped || layout == Layout::nemo;
}

BPacking packing_of(Layout layout) {
  return layout == Layout::unsloth_grouped ? BPacking::grouped_by_expert : BPacking::rank_major;
}

Layout layout_of(const AdapterConfig::Version& version) {
  if (version < AdapterConfig::Version{0, 19, 0}) return Layout::peft_fused_0_18;
  if (version < AdapterConfig::Version{0, 19, 1}) return Layout::peft_fused_0_19_0;
  return Layout::peft_fused;
}

Dims natural_dims(const Experts& experts, const ExpertsForm::Fused& parameter) {
  const auto shape = experts.fused_shape(parameter);
  if (shape.size() == 2) return {shape[0], shape[1]};
  if (shape.size() != 3) return {};
  return parameter.in_out ? Dims{shape[2], shape[1]} : Dims{shape[1], shape[2]};
}

AdapterConfig::Version version_of(Layout layout) {
  switch (layout) {
    case Layout::peft_per_expert:
    case Layout::peft_fused_0_18:
      return {0, 18, 1};
    case Layout::peft_fused_0_19_0:
      return {0, 19, 0};
    default:
      return {0, 21, 2};
  }
}

Generation generation_of(Layout layout, const Model& model) {
  if (layout == Layout::peft_per_expert) return Generation::v4;
  if (layout != Layout::peft_fused_0_18 || model.base_is_v5_only) return Generation::v5;
  // PEFT 0.17 and 0.18 ran on transformers 4 where that generation had fused parameters (gpt_oss, llama4, ...).
  const bool fused_in_v4 =
      std::any_of(model.experts.begin(), model.experts.end(), [](const Experts& e) { return !e.form->v4.empty(); });
  return fused_in_v4 ? Generation::v4 : Generation::v5;
}

}  // namespace peft::layout
