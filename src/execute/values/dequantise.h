// Turns quantised codes with a grid of scales into numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gguf/types/ggml_type.h"
#include "peft/plan.h"

namespace peft::execution {

// A quantised block ready to be read. Element (i, j) is code offset + i * row_stride + j * col_stride.
struct Codes {
  Scales::Kind kind = Scales::Kind::fp8;
  Dtype dtype = Dtype::u8, grid_dtype = Dtype::u8;
  const std::byte* data = nullptr;  // code 0 of the tensor
  const std::byte* grid = nullptr;
  std::int64_t offset = 0, row_stride = 0, col_stride = 0;
  std::int64_t width = 0, cell_rows = 1, cell_cols = 1;
  std::int64_t grid_row = 0, grid_col = 0;  // strides, in bytes
  gguf::GgmlType type{};                    // of Kind::ggml
};
Codes codes_of(const Plan& plan, const Block& block);

// Writes elements (row + i, col + j), for i < rows and j < cols, to out[i * pitch + j] in fp32. mxfp4 values are exact;
// those of fp8 and of ggml's types are rounded to fp32. Values beyond fp32 become infinite.
void dequantise(const Codes& codes, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                float* out, std::int64_t pitch);

// Element (row, col) of a block as it stands in the output: dequantised and scaled, not yet rounded. Slow, as the
// value_at() of element.h.
double value_at(const Plan& plan, const Block& block, std::int64_t row, std::int64_t col);

}  // namespace peft::execution
