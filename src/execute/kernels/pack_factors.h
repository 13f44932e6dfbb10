// LoRA factors as the kernels read them: widened, and laid out so that every load is of whole lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "execute/kernels/tile_math.h"
#include "peft/plan.h"

namespace peft::execution {

// A matrix of elements in memory; strides in bytes. Without data it stands for ones.
struct FactorSource {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t row_stride = 0, col_stride = 0;
  std::shared_ptr<const void> owner{};  // of the data, if it is not a file's
};
FactorSource source_of(const Plan& plan, const View& view);

// The factors of an update as its matrix lies in the tensor: left(i, k) for its rows, right(k, j) for its columns.
struct Sides {
  View left, right;  // [rows, rank], [rank, columns]; a left or right without rows stands for ones
  std::int64_t rank = 0;
};
Sides sides_of(const Update& update, bool swapped);

// A source without data stands for ones. Rows [first, first + rows) of `left`: out[i * rank + k]. norms[i], if wanted:
// an upper bound of the row's norm.
template <class T>
void pack_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, T* out,
               float* norms);
// Columns [panel * kPanel, ...) of `right`: out[k * kPanel + j], zeros past the last. Returns a bound of the columns'
// norms.
template <class T>
float pack_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel, T* out);

}  // namespace peft::execution
