// Which way round the pairs of a fused file are: decided by shapes, else by siblings, else by PEFT's version and
// family.
#pragma once

#include <vector>

#include "layout/fused_slots.h"

namespace peft::layout {

struct FusedForm {
  Layout layout = Layout::peft_fused;
  BPacking packing = BPacking::rank_major;
  Orientation orientation = Orientation::natural;
};

// Adds its evidence to the reading. Throws LO_LAYOUT where the file contradicts itself or the options, or leaves it
// open.
FusedForm decide_form(Context& context, const std::vector<FusedSlot>& slots);

}  // namespace peft::layout
