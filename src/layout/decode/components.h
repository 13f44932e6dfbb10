// Which rank components of a stacked pair each expert and projection really uses. PEFT's conversion makes gate_up
// block-diagonal: half of the components belong to gate, half to up, and the other halves of B are exact zeros. Finding
// the zeros gives back the original ranks. Components that are zero in A and in B give back experts that were absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "layout/decode/fused_form.h"

namespace peft::layout {

struct ComponentRange {
  std::int64_t first = 0, count = 0;
};

struct Components {
  std::vector<ComponentRange> ranges;  // [expert * parts + part]
  std::size_t parts = 1;
  bool block_diagonal = false;
  const ComponentRange& range(std::int64_t expert, std::size_t part) const {
    return ranges[static_cast<std::size_t>(expert) * parts + part];
  }
};

// Reads the tensors of the slot (most of it only where zeros are found).
Components find_components(const Context& context, const FusedSlot& slot, const FusedForm& form);

// ---- Zeros of a stored matrix. Each byte is read at most once, and reading stops where the answer is known. Zero
// means the value: -0.0 counts as zero, NaN does not.

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
