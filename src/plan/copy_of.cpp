#include "peft/plan.h"

namespace peft {

PlannedTensor copy_of(const TensorInfo& tensor, std::uint32_t index, std::string name, Dtype dtype) {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  const std::int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  return {std::move(name),
          dtype,
          {tensor.shape.begin(), tensor.shape.end()},
          rows,
          cols,
          {{0, 0, 1, View{0, index, 0, rows, cols, cols, 1}, 1.0}}};
}

}  // namespace peft
