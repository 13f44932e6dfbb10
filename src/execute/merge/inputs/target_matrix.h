// The matrices that a merge changes in one tensor, found by row.
#pragma once

#include <cstdint>
#include <vector>

#include "execute/copy/row_index.h"
#include "plan/lattice.h"

namespace peft::execution {

// The elements of one target, and the updates that it gets, in order.
struct TargetMatrix {
  plan::Lattice lattice;
  std::vector<std::uint32_t> updates;
};

struct TargetIndex {
  std::vector<TargetMatrix> matrices;  // in the order of their first update
  RowIndex by_row;                     // of `matrices`

  TargetIndex() = default;
  explicit TargetIndex(const PlannedTensor& tensor);
};

}  // namespace peft::execution
