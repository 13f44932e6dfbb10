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

// The numbers of a's walk that lie in [begin, end): index of the first one, and how many.
struct StepRange {
  std::int64_t first = 0, count = 0;
};
StepRange steps_in(const plan::Steps& steps, std::int64_t begin, std::int64_t end);

}  // namespace peft::execution
