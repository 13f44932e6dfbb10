#include <ATen/ATen.h>

#include "nn/modules.h"

namespace peft::nn {

Tensor Linear::compute(const Tensor& x) const { return at::linear(x, weight, bias); }

}  // namespace peft::nn
