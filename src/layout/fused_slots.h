// Which parameter each wrapper of a fused file stands for. The name of the parameter is nowhere in the key: it follows
// from the config, the order of registration and the shapes.
#pragma once

#include <vector>

#include "layout/decode.h"

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

}  // namespace peft::layout
