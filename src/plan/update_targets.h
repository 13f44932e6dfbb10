// Where an update lies in the matrix of its planned tensor: rows and columns in even steps, stored as [out, in] or [in,
// out].
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "peft/plan.h"
#include "plan/row_index.h"

namespace peft::plan {

// first, first + step, ... (`count` of them)
struct Steps {
  std::int64_t first = 0, step = 1, count = 0;
  std::int64_t last() const { return first + (count - 1) * step; }
  bool operator==(const Steps&) const = default;
};
// Whether the two share a number.
bool meet(const Steps& a, const Steps& b);

// The numbers of a walk that lie in [begin, end): index of the first one, and how many.
struct StepRange {
  std::int64_t first = 0, count = 0;
};
StepRange steps_in(const Steps& steps, std::int64_t begin, std::int64_t end);

struct Lattice {
  Steps rows, cols;      // of the planned tensor's matrix
  bool swapped = false;  // the tensor's rows are the update's columns: stored as [in, out]
  bool operator==(const Lattice&) const = default;
};

// nullopt when the target leaves the tensor, or does not walk along its rows with one index and its columns with the
// other.
std::optional<Lattice> lattice_of(const PlannedTensor& tensor, const View& target);

// The elements of one target, and the updates that it gets, in order.
struct TargetMatrix {
  Lattice lattice;
  std::vector<std::uint32_t> updates;
};

struct TargetIndex {
  std::vector<TargetMatrix> matrices;  // in the order of their first update
  RowIndex by_row;                     // of `matrices`

  TargetIndex() = default;
  explicit TargetIndex(const PlannedTensor& tensor);
};

}  // namespace peft::plan
