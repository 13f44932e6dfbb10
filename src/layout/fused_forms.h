// Facts about fused parameters that encoders and decoders share: which way round each PEFT generation writes them.
#pragma once

#include "peft/layout.h"

namespace peft::layout {

// Whether PEFT's wrapper exchanges in and out features of this parameter (layouts.md, section 0).
bool swaps(Layout layout, const ExpertsForm::Fused& parameter);
// Natural: lora_A has the width the expert's input has.
Orientation orientation_of(Layout layout, const ExpertsForm::Fused& parameter);
BPacking packing_of(Layout layout);
// The fused layout a PEFT version writes.
Layout layout_of(const AdapterConfig::Version& version);

// Input and output width of one expert's matrix, by the family table; 0 when unknown.
struct Dims {
  std::int64_t out = 0, in = 0;
};
Dims natural_dims(const Experts& experts, const ExpertsForm::Fused& parameter);

inline const std::string& experts_module(const Experts& experts) {
  return experts.v5_module.empty() ? experts.v4_module : experts.v5_module;
}

}  // namespace peft::layout
