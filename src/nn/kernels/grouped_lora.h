// LoRA of experts in factored form: rows of x that are grouped by expert get scale * B_e (A_e x) of their expert.
// The update of an expert's matrix is never built; experts without rows cost nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/kernels/grouped_linear.h"

namespace peft::nn {

// The factors of one parameter for all its experts. An ordinary matrix is one expert.
struct FactorStack {
  at::Tensor a;  // [experts, rank, in]
  at::Tensor b;  // [experts, rank, out]: B transposed, so that one row of x reads it in order
  double scale = 1;
  std::int64_t experts() const { return a.size(0); }
  std::int64_t rank() const { return a.size(1); }
  std::int64_t in() const { return a.size(2); }
  std::int64_t out() const { return b.size(2); }
};

// y + scale * B (A x), in the wider dtype of y and the factors; x is cast to the factors' dtype, as PEFT does.
// Where no gradient is recorded and the dtype is the same, y itself is changed and returned.
at::Tensor add_grouped(const at::Tensor& y, const at::Tensor& x, const FactorStack& stack, const RowGroups& groups);

// Whether add_rounded() serves: a 16-bit y in the CPU's memory, no gradients, more than a few rows.
bool can_add_rounded(const at::Tensor& y, const at::Tensor& x, const FactorStack& stack);
// The same sum, rounded to y's dtype. Only a block of y is widened at a time. y itself may be changed. For a y to which
// nothing else is added.
at::Tensor add_rounded(const at::Tensor& y, const at::Tensor& x, const FactorStack& stack, const RowGroups& groups);

}  // namespace peft::nn
