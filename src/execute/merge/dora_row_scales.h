// DoRA: each output row of a matrix is multiplied with magnitude / norm(W + delta). The norms need a pass over the
// matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "execute/merge/inputs/shared_store.h"
#include "execute/merge/update_products.h"

namespace peft::execution {

// Measures outputs [first, first + count) of the opened target matrix. For a matrix stored as [in, out] all outputs
// have to be measured at once.
template <class T>
DoraRowScales measure_row_scales(const MergedTensor& tensor, UpdateProducts<T>& products, std::int64_t first,
                                 std::int64_t count);

// Row scales of whole matrices, which several units need. A key is a tensor and the index of a target matrix.
using RowScaleStore = SharedStore<std::tuple<const PlannedTensor*, std::size_t>, DoraRowScales>;

// What the threads of a run share.
struct MergeStores {
  RowScaleStore row_scales{64};
  GatherStore factors;
};

}  // namespace peft::execution
