#include "peft/plan.h"
#include "safetensors/writing/file_layout.h"

namespace peft {

FileLayout layout_file(const PlannedFile& file) {
  std::vector<TensorInfo> tensors;
  tensors.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) tensors.push_back({tensor.name, tensor.dtype, {}, tensor.shape});
  return file_layout_for(tensors, file.metadata);
}

}  // namespace peft
