// LoRA factors in the form that the kernels read: widened to fp32 or fp64, and laid out so that every load takes whole
// cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "execute/kernels/tile_math.h"
#include "peft/plan.h"

namespace peft::execution {

// A matrix of elements in memory. Strides are in bytes. Without data all elements are 1.
struct FactorSource {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t row_stride = 0, col_stride = 0;
  std::shared_ptr<const void> owner{};  // keeps the data alive, where it does not lie in a file
};
FactorSource source_of(const Plan& plan, const View& view);

// The factors of an update in the orientation of the tensor: left(i, k) for its rows, right(k, j) for its columns.
struct Sides {
  View left, right;  // [rows, rank], [rank, columns]; a view without rows or columns stands for ones
  std::int64_t rank = 0;
};
Sides sides_of(const Update& update, bool swapped);

// Packs rows [first, first + rows) of `left` to out[i * rank + k]. norms[i] becomes the norm of row i; `norms` may be
// null.
template <class T>
void pack_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, T* out,
               float* norms);
// Packs the columns of a panel of `right`, from panel * kPanel on, to out[k * kPanel + j], with zeros past the last
// column. Returns the largest norm of these columns.
template <class T>
float pack_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel, T* out);

}  // namespace peft::execution
