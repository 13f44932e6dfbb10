// Products with weights: of all rows with one matrix, and of rows sorted by expert with the matrix of their expert.
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

}  // namespace peft::nn
