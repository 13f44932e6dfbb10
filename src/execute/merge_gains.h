// DoRA: what each output of a matrix is multiplied with, magnitude / norm(W + delta). Needs a pass over the matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "execute/merge_tiles.h"

namespace peft::execution {

// Weights of a place before the merge: rows [row, row + rows) of its matrix as stored, one panel of columns; zeros past
// the last column.
template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch);

// For outputs [first, first + count) of the opened place; for a swapped one all outputs at once.
template <class T>
Gains measure_gains(const MergedTensor& tensor, Tiles<T>& tiles, std::int64_t first, std::int64_t count);

// Gains of whole matrices: several units need the same ones. Keys are a tensor and a place.
using GainStore = SharedStore<std::tuple<const PlannedTensor*, std::size_t>, Gains>;

// What the threads of one run share.
struct MergeStores {
  GainStore gains{64};
  GatherStore factors;
};

}  // namespace peft::execution
