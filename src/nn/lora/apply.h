// What one adapter does to the output of its site. All functions return the wider dtype of y and the factors; the
// caller rounds once, after the last adapter.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/lora/site.h"

namespace peft::nn {

// y [rows, out] is the output so far for x [rows, in] (of an nn.Linear: with its bias).
at::Tensor apply_linear(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& x,
                        bool training);
// y [rows, dim] is the output so far for ids [rows].
at::Tensor apply_embedding(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& ids);
// Rows by expert; expert [rows] is the expert of each row.
at::Tensor apply_experts(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& x,
                         const RowGroups& groups, const at::Tensor& expert, bool training);
// LoRA on the bias [E, out] of experts: row e of s B A is added to the rows of expert e.
at::Tensor apply_bias_rows(const SiteFactors& factors, const at::Tensor& y, const at::Tensor& expert);

}  // namespace peft::nn
