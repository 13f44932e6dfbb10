// One tile from the weights as they were to the weights as they are written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/kernels/tile_math.h"
#include "execute/merge/update_products.h"
#include "peft/execute.h"

namespace peft::execution {

// Where the rows of an area are, before and after.
struct AreaRows {
  Rectangle area;
  BaseRows base;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;
};

// One tile of an opened place: rows [row, row + rows) of those taken, the first of which is `first`; of the panel's
// columns [begin, end). False when a result is not finite.
struct TileArea {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t panel = 0;
  std::size_t begin = 0, end = 0;
};
template <class T>
bool merge_tile(const MergedTensor& tensor, UpdateProducts<T>& products, const DoraRowScales& row_scales, const AreaRows& target,
                const TileArea& place, T* weights, MergeError& error);

// How many rows after `row` the next one is that is compared in this panel.
std::size_t first_sampled(std::int64_t row, std::int64_t panel);

// Steps are elements from one result to the next. Exact sums are rounded to the base's dtype, then to the result's.
struct SampleDtypes {
  Dtype base = Dtype::bf16, out = Dtype::bf16;
};
void compare_sample(const SampleDtypes& dtypes, const double* exact, std::size_t count, const std::byte* results,
                    std::int64_t step, MergeError& error);

}  // namespace peft::execution
