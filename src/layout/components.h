// Which rank components of a stacked pair each expert and projection really uses. PEFT's conversion makes gate_up
// block-diagonal: half the components belong to gate, half to up, and the other halves of B are exact zeros. Seeing
// that gives back the original ranks; seeing components that are zero in A and B gives back experts that were absent.
#pragma once

#include <vector>

#include "layout/orientation.h"

namespace peft::layout {

struct ComponentRange {
  std::int64_t first = 0, count = 0;
};

struct Components {
  std::vector<ComponentRange> ranges;  // [expert * parts + part]
  std::size_t parts = 1;
  bool block_diagonal = false;
  const ComponentRange& range(std::int64_t expert, std::size_t part) const {
    return ranges[static_cast<std::size_t>(expert) * parts + part];
  }
};

// Reads the tensors of the slot (most of it only where zeros are found).
Components find_components(const Context& context, const FusedSlot& slot, const FusedForm& form);

}  // namespace peft::layout
