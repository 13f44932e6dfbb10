// DoRA: what each output of a matrix is multiplied with, magnitude / norm(W + delta). Needs a pass over the matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "execute/merge/inputs/shared_store.h"
#include "execute/merge/update_products.h"

namespace peft::execution {

// For outputs [first, first + count) of the opened place; for a swapped one all outputs at once.
template <class T>
DoraRowScales measure_row_scales(const MergedTensor& tensor, UpdateProducts<T>& products, std::int64_t first, std::int64_t count);

// Gains of whole matrices: several units need the same ones. Keys are a tensor and a place.
using RowScaleStore = SharedStore<std::tuple<const PlannedTensor*, std::size_t>, DoraRowScales>;

// What the threads of one run share.
struct MergeStores {
  RowScaleStore row_scales{64};
  GatherStore factors;
};

}  // namespace peft::execution
