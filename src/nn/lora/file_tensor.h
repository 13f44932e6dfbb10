// Tensors of a safetensors file as torch tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "peft/safetensors.h"

namespace peft::nn {

// ST_DTYPE for what torch does not have.
at::ScalarType scalar_type(Dtype dtype, const TensorFile& file, std::string_view tensor);
Dtype file_dtype(at::ScalarType type);

// A strided view of one tensor, copied and cast. The file may be closed afterwards.
at::Tensor read_view(const TensorFile& file, const View& view, at::ScalarType type);
// The whole tensor in its own shape and dtype. Throws NUM_NONFINITE.
at::Tensor read_tensor(const TensorFile& file, std::uint32_t tensor);

}  // namespace peft::nn
