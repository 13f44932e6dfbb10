#include "execute/merge_blame.h"

#include <cmath>
#include <string>

#include "execute/finite.h"
#include "execute/value.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

void check_values(const Plan& plan, const View& view, const char* hint) {
  for (std::int64_t i = 0; i < view.rows; ++i) {
    for (std::int64_t j = 0; j < view.cols; ++j) {
      const double value = value_at(plan, view, i, j);
      if (std::isfinite(value)) continue;
      const TensorFile& file = *plan.sources[view.source];
      throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                             .tensor = std::string(file.tensors()[view.tensor].name),
                                             .problem = "the tensor holds values that are no numbers",
                                             .expected = "finite values",
                                             .got = std::isnan(value) ? "NaN" : "infinity",
                                             .hint = hint});
    }
  }
}

void check_block(const Plan& plan, const Block& block) {
  for (std::int64_t i = 0; i < block.source.rows; ++i) {
    for (std::int64_t j = 0; j < block.source.cols; ++j) {
      const double value = value_at(plan, block, i, j);
      if (std::isfinite(value)) continue;
      const TensorFile& file = *plan.sources[block.source.source];
      throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                             .tensor = std::string(file.tensors()[block.source.tensor].name),
                                             .problem = "the base weight holds values that are no numbers",
                                             .expected = "finite values",
                                             .got = std::isnan(value) ? "NaN" : "infinity",
                                             .hint = "the base checkpoint is damaged; download it again"});
    }
  }
}

}  // namespace

void blame_merge(const Plan& plan, const PlannedTensor& tensor) {
  constexpr const char* kDiverged = "the training of this adapter probably diverged";
  for (const Update& update : tensor.merge->updates) {
    check_values(plan, update.a, kDiverged);
    if (update.b.rows != 0) check_values(plan, update.b, kDiverged);
    if (update.magnitude) check_values(plan, *update.magnitude, kDiverged);
  }
  for (const Block& block : tensor.blocks) check_block(plan, block);
  throw Error(ErrorCode::NUM_OVERFLOW,
              {.tensor = tensor.name,
               .problem = "a merged value does not fit the output dtype",
               .got = std::string(info(tensor.dtype).name),
               .hint = "choose a dtype with a larger range: --base-dtype bfloat16 or float32"});
}

}  // namespace peft::execution
