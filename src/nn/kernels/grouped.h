// Products of rows that are sorted by expert: with the matrix of their expert, and with the LoRA factors of their
// expert. All rows with one matrix is the case of one expert.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace peft::nn {

using at::Tensor;

// The experts that have rows, and where their rows begin; `begin` has one more entry, the number of rows.
struct RowGroups {
  std::vector<std::int64_t> hit{}, begin{};
  std::int64_t rows() const { return begin.empty() ? 0 : begin.back(); }
};
RowGroups one_group(std::int64_t rows);

// The rows of a batch by expert: a token that chose k experts has k rows.
struct ExpertGroups : RowGroups {
  std::int64_t tokens = 0, top_k = 0;
  Tensor token{};    // [rows] int64: the token of each sorted row
  Tensor expert{};   // [rows] int64: its expert, ascending
  Tensor choice{};   // [rows] int64: token * k + choice, where the row stood before sorting
  Tensor inverse{};  // [rows] int64: the sorted row of token * k + choice
};
ExpertGroups group_by_expert(const Tensor& indices /* [tokens, k] int64 */, std::int64_t num_experts);

// x [rows, in] times weight [out, in], plus bias [out] where it is defined.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias);

// y[j] = weight[expert of j] * x[j]: x [rows, in], weight [E, out, in] of any strides, y [rows, out]. Differentiable in
// both. A view serves for the other orientation: weight.transpose(1, 2). Never reads an expert without rows.
Tensor grouped_linear(const Tensor& x, const Tensor& weight, const RowGroups& groups);

// LoRA in factored form: rows get scale * B_e (A_e x) of their expert. The update of an expert's matrix is never built;
// experts without rows cost nothing.

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
