// Facts about layouts that encoders and decoders share: which PEFT version and transformers generation a layout belongs
// to, and which way round it has the factors of a fused parameter.
#pragma once

#include "peft/layout.h"

namespace peft::layout {

// The fused layout that a PEFT version writes, and the version that the config of a layout names.
Layout layout_of(const AdapterConfig::Version& version);
AdapterConfig::Version version_of(Layout layout);

// The layouts in which PEFT holds all experts of a parameter in one pair; and all layouts of PEFT's own files.
bool is_fused(Layout layout);
inline bool is_peft(Layout layout) { return layout == Layout::peft_per_expert || is_fused(layout); }

// The transformers generation whose names a layout uses for this model.
Generation generation_of(Layout layout, const Model& model);

// Whether PEFT's wrapper swaps the in and out features of this parameter (layouts.md, section 0).
bool swaps(Layout layout, const ExpertsForm::Fused& parameter);
// Natural: the columns of lora_A are the inputs of the expert, the rows of lora_B its outputs. Reversed: PEFT swapped
// them.
Orientation orientation_of(Layout layout, const ExpertsForm::Fused& parameter);
// How the columns of lora_B number the ranks of all experts.
BPacking packing_of(Layout layout);

// The input and output width of one expert's matrix, from the family table; 0 when unknown.
struct Dims {
  std::int64_t out = 0, in = 0;
};
Dims natural_dims(const Experts& experts, const ExpertsForm::Fused& parameter);

}  // namespace peft::layout
