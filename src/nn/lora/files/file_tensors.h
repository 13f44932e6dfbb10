// Torch tensors of safetensors files, on disk and in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/safetensors.h"

namespace peft::nn {

// Throws ST_DTYPE for a dtype that torch does not have.
at::ScalarType scalar_type(Dtype dtype, const TensorFile& file, std::string_view tensor);
Dtype file_dtype(at::ScalarType type);

// A strided view of one tensor, copied and cast. The file may be closed afterwards.
at::Tensor read_view(const TensorFile& file, const View& view, at::ScalarType type);
// The whole tensor in its own shape and dtype. Throws NUM_NONFINITE.
at::Tensor read_tensor(const TensorFile& file, std::uint32_t tensor);

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Contiguous, on the CPU.
NamedTensors on_host(const NamedTensors& tensors);
std::vector<NewTensor> described(const NamedTensors& tensors);

struct MemoryFile {
  std::vector<std::byte> image;
  std::shared_ptr<const TensorFile> file;  // over `image`
  std::uint32_t index(const std::string& name) const;
};
std::unique_ptr<MemoryFile> memory_file(const NamedTensors& tensors);

}  // namespace peft::nn
