// Merges one tile: loads the weights, runs the program, recomputes what cancelled, and stores the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/kernels/tile_math.h"
#include "execute/merge/update_products.h"
#include "peft/execute.h"

namespace peft::execution {

// Where the rows of an area lie before and after the merge.
struct AreaRows {
  Rectangle area;
  BaseRows base;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;
};

// A tile of the opened target matrix: rows [row, row + rows) of the rows that UpdateProducts::take_rows() took from row
// `first` of the matrix on; columns [begin, end) of a panel.
struct TileArea {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t panel = 0;
  std::size_t begin = 0, end = 0;
};
template <class T>
bool merge_tile(const MergedTensor& tensor, UpdateProducts<T>& products, const DoraRowScales& row_scales,
                const AreaRows& target, const TileArea& tile, T* weights, MergeError& error);

// The error of MergeMode::fast is measured on sampled rows. They are chosen by their tile in the matrix, so that they
// do not depend on how the file is cut. Returns how many rows after `row` the next sampled row of this panel is.
std::size_t first_sampled(std::int64_t row, std::int64_t panel);

// Compares results with exact sums, which are rounded to `base`, then to `out`. `step`: elements from one result to the
// next.
struct SampleDtypes {
  Dtype base = Dtype::bf16, out = Dtype::bf16;
};
void compare_sample(const SampleDtypes& dtypes, const double* exact, std::size_t count, const std::byte* results,
                    std::int64_t step, MergeError& error);

}  // namespace peft::execution
