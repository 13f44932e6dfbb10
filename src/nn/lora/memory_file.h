// Torch tensors as a safetensors file in memory, and out to disk.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/safetensors.h"

namespace peft::nn {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Dense, on the CPU.
NamedTensors on_host(const NamedTensors& tensors);
std::vector<NewTensor> described(const NamedTensors& tensors);

struct MemoryFile {
  std::vector<std::byte> image;
  std::shared_ptr<const TensorFile> file;  // over `image`
  std::uint32_t index(const std::string& name) const;
};
std::unique_ptr<MemoryFile> memory_file(const NamedTensors& tensors);

}  // namespace peft::nn
