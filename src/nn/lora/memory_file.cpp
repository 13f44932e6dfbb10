#include "nn/lora/memory_file.h"

#include <ATen/ATen.h>

#include <cstring>

#include "nn/lora/file_tensor.h"

namespace peft::nn {

NamedTensors on_host(const NamedTensors& tensors) {
  NamedTensors result;
  result.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.detach().cpu().contiguous());
  return result;
}

std::vector<NewTensor> described(const NamedTensors& tensors) {
  std::vector<NewTensor> result;
  for (const auto& [name, tensor] : tensors) {
    result.push_back({name, file_dtype(tensor.scalar_type()), tensor.sizes().vec()});
  }
  return result;
}

std::uint32_t MemoryFile::index(const std::string& name) const {
  return static_cast<std::uint32_t>(file->find(name) - file->tensors().data());
}

std::unique_ptr<MemoryFile> memory_file(const NamedTensors& given) {
  const NamedTensors tensors = on_host(given);
  const FileLayout layout = layout_file(described(tensors));
  auto made = std::make_unique<MemoryFile>();
  made->image.resize(layout.file_bytes());
  std::memcpy(made->image.data(), layout.head.data(), layout.head.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i].second;
    if (tensor.nbytes() == 0) continue;
    std::memcpy(made->image.data() + layout.head.size() + layout.begin[i], tensor.const_data_ptr(), tensor.nbytes());
  }
  made->file = TensorFile::parse(made->image, "an adapter in memory");
  return made;
}

}  // namespace peft::nn
