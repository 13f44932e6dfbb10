// Which rows or columns of a stored matrix hold a value other than zero. Reads each byte at most once and stops
// early where an answer is known. Zero means the value: -0.0 counts as zero, NaN does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "peft/tensor.h"

namespace peft::layout {

// A row-major matrix of a tensor file; rows and columns may be a part of it.
struct StoredMatrix {
  std::span<const std::byte> bytes;
  Dtype dtype = Dtype::f32;
  std::int64_t rows = 0, cols = 0;
};

// used[c]: column c has a non-zero in rows [first_row, last_row).
std::vector<bool> nonzero_columns(const StoredMatrix& matrix, std::int64_t first_row, std::int64_t last_row);
// used[r]: row r has a non-zero in columns [first_col, last_col).
std::vector<bool> nonzero_rows(const StoredMatrix& matrix, std::int64_t first_col, std::int64_t last_col);

}  // namespace peft::layout
