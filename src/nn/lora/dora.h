// DoRA: row i of W + scale * B A is scaled by magnitude(i) over its own norm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "nn/lora/site.h"

namespace peft::nn {

// Norms of the rows of W + scale * B A, without gradient, in the factors' dtype: [out], for experts [experts, out].
// `hit`: only these experts' rows are needed; others may be left over from before. Kept until W, A or B change.
at::Tensor row_norms(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit = nullptr);

// magnitude / norms.
at::Tensor gains(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit = nullptr);

}  // namespace peft::nn
