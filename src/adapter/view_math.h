// Reading the elements behind a view: equality, zeros, values, numbers that are not finite.
// Functions that compare bytes run at the speed of memory. Functions that need values convert them to double, which is
// exact for every float dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "peft/safetensors.h"
#include "peft/tensor.h"

namespace peft::adapter {

// A view together with its bytes. `data` is element (0, 0); strides count elements.
struct Matrix {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t width = 4;  // bytes of an element
  std::int64_t rows = 0, cols = 0;
  std::int64_t row_stride = 0, col_stride = 0;

  Matrix transposed() const { return {data, dtype, width, cols, rows, col_stride, row_stride}; }
  Matrix row_range(std::int64_t first, std::int64_t count) const {
    return {data + first * row_stride * width, dtype, width, count, cols, row_stride, col_stride};
  }
  Matrix col_range(std::int64_t first, std::int64_t count) const {
    return {data + first * col_stride * width, dtype, width, rows, count, row_stride, col_stride};
  }
};

// Checks that the view stays inside its tensor (INTERNAL otherwise: a codec is wrong) and that elements are
// whole bytes (ST_DTYPE otherwise).
Matrix bind(const TensorFile& file, const View& view);
// A whole tensor as one row.
Matrix bind(const TensorFile& file, const TensorInfo& tensor);

// Same shape, same dtype, same bytes element by element, whatever the strides.
bool equal(const Matrix& a, const Matrix& b);

// Zero means the value: -0.0 counts as zero, NaN does not.
std::vector<bool> zero_rows(const Matrix& matrix);
std::vector<bool> zero_cols(const Matrix& matrix);
// Sets nonzero[c] for each column with a value in it; for matrices that are read in pieces.
void mark_nonzero_cols(const Matrix& matrix, std::vector<bool>& nonzero);

// All values, column after column: out[c * rows + r]. Throws ST_DTYPE for a dtype that is not floating.
void read(const Matrix& matrix, std::span<double> out);
// The listed columns, one after the other.
void read_columns(const Matrix& matrix, std::span<const std::int64_t> list, std::span<double> out);

struct NonFinite {
  std::int64_t nan = 0, positive = 0, negative = 0;
  std::int64_t first = -1;  // index in the flattened tensor
  bool any() const { return first >= 0; }
};
NonFinite count_nonfinite(std::span<const std::byte> bytes, Dtype dtype);
// Throws NUM_NONFINITE with file, tensor, counts and first index.
void require_finite(const TensorFile& file, const TensorInfo& tensor);

}  // namespace peft::adapter
