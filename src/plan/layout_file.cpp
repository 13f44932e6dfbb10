#include "peft/plan.h"

namespace peft {

FileLayout layout_file(const PlannedFile& file) {
  std::vector<TensorInfo> tensors;
  tensors.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) tensors.push_back({tensor.name, tensor.dtype, {}, tensor.shape});
  return layout_infos(tensors, file.metadata);
}

}  // namespace peft
