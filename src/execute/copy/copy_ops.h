// The blocks of a planned tensor as copy operations: the few shapes for which rendering is fast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "execute/values/dequantise.h"
#include "peft/plan.h"

namespace peft::execution {

// Rows of the source that an interleave takes its columns from: `count` of them, `step` bytes apart.
// Without data: zeros (experts that the adapter does not have).
struct Member {
  const std::byte* data = nullptr;
  std::int64_t count = 1, step = 0;
};

// What fills one rectangle of a tensor. Strides are in bytes.
struct Op {
  enum class Kind : std::uint8_t {
    copy,        // rows as they are: element (i, j) at data + i * row_stride, and j elements on
    interleave,  // element (i, k * width + w) at member w + i * row_stride, and k elements on, for k < group
    strided,     // element (i, j) at data + i * row_stride + j * col_stride, to column col + j * col_step
    decode,      // element (i, j) of `codes`, to column col + j * col_step
  };
  Kind kind = Kind::copy;
  bool convert = false;  // another dtype, or a scale
  Dtype dtype = Dtype::f32;
  double scale = 1;
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;  // cols: of the rectangle; for `strided`, columns written
  std::int64_t col_step = 1;
  const std::byte* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;
  std::int64_t group = 1, width = 0;
  std::vector<Member> members;
  Codes codes;

  bool dense() const { return col_step == 1; }
};

struct Rectangle {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
};

// How to fill a tensor: first the zeros, then the operations, in any order.
struct TensorOps {
  std::vector<Rectangle> zeros;
  std::vector<Op> ops;
};

// The dtype that the blocks of a tensor are converted to: base_dtype for a merged tensor, else the tensor's own.
Dtype rendered_dtype(const PlannedTensor& tensor);

// `wide`: the rows do not fit a buffer. Then only operations that can start at any column are used.
TensorOps make_ops(const Plan& plan, const PlannedTensor& tensor, bool wide);

}  // namespace peft::execution
