// Element-by-element equality of two views of one file, by bytes.
#pragma once

#include <cstring>

#include "peft/safetensors.h"

namespace peft::layout {

inline bool same_values(const TensorFile& file, const View& x, const View& y) {
  if (x == y) return true;
  if (x.rows != y.rows || x.cols != y.cols) return false;
  const TensorInfo &tx = file.tensors()[x.tensor], &ty = file.tensors()[y.tensor];
  if (tx.dtype != ty.dtype) return false;
  const auto size = static_cast<std::size_t>(info(tx.dtype).bits) / 8;
  const std::byte *px = file.bytes(tx).data(), *py = file.bytes(ty).data();
  const auto at = [size](const std::byte* base, const View& v, std::int64_t row, std::int64_t col) {
    return base + static_cast<std::size_t>(v.offset + row * v.row_stride + col * v.col_stride) * size;
  };
  const bool contiguous = x.col_stride == 1 && y.col_stride == 1;
  for (std::int64_t row = 0; row < x.rows; ++row) {
    if (contiguous) {
      if (std::memcmp(at(px, x, row, 0), at(py, y, row, 0), static_cast<std::size_t>(x.cols) * size) != 0) return false;
      continue;
    }
    for (std::int64_t col = 0; col < x.cols; ++col) {
      if (std::memcmp(at(px, x, row, col), at(py, y, row, col), size) != 0) return false;
    }
  }
  return true;
}

}  // namespace peft::layout
