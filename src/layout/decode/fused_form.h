// The form of a fused file: which parameter each wrapper stands for, and which way round the pairs are.
//
// The key of a tensor does not say the name of its parameter. It follows from the config, the order of registration and
// the shapes. The orientation follows from the shapes, else from sibling tensors, else from PEFT's version and the
// family.
#pragma once

#include <string>
#include <vector>

#include "layout/decode/context.h"

namespace peft::layout {

struct FusedSlot {
  const Slot* slot = nullptr;
  const Experts* experts = nullptr;
  const ExpertsForm::Fused* parameter = nullptr;
  std::string name;              // "model.layers.0.mlp.experts.gate_up_proj", as the config would name it
  std::int64_t num_experts = 0;  // 0 for a 2-D parameter
  std::int64_t rank = 0;         // per expert
  double scale = 1;
  std::int64_t a_width = 0, b_width = 0;  // columns of lora_A, rows of lora_B
  bool stacked() const { return num_experts > 0; }
};

std::vector<FusedSlot> assign_parameters(const Context& context, const std::vector<Slot>& slots,
                                         const std::vector<Model::Located>& located);

struct FusedForm {
  Layout layout = Layout::peft_fused;
  BPacking packing = BPacking::rank_major;
  Orientation orientation = Orientation::natural;
};

// Adds its evidence to the reading. Throws LO_LAYOUT where the file contradicts itself or the options, or leaves it
// open.
FusedForm decide_form(Context& context, const std::vector<FusedSlot>& slots);

}  // namespace peft::layout
