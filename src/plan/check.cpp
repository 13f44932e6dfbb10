#include "plan/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "base/float_formats.h"
#include "peft/error.h"
#include "plan/view_check.h"

namespace peft::plan {
namespace {

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();  // "does not fit 64 bits"

std::int64_t add(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  return a == kNone || b == kNone || __builtin_add_overflow(a, b, &sum) ? kNone : sum;
}

std::int64_t multiply(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return a == kNone || b == kNone || __builtin_mul_overflow(a, b, &product) ? kNone : product;
}

// Checks one tensor of one file, and says which when it fails.
class TensorCheck {
 public:
  TensorCheck(const Plan& plan, const PlannedFile& file, const PlannedTensor& tensor)
      : scope_(plan, file, tensor), tensor_(tensor) {}

  void run() const {
    scope_.require(info(tensor_.dtype).bits > 0, "a planned tensor has no known dtype");
    check_shape();
    std::int64_t covered = 0;
    for (const Block& block : tensor_.blocks) {
      check_block(block);
      check_source(block);
      covered = add(covered, block.source.rows * block.source.cols);
    }
    scope_.require(covered <= tensor_.rows * tensor_.cols, "blocks of a planned tensor overlap");
    if (tensor_.merge) check_merge(scope_, *tensor_.merge);
  }

 private:
  void check_shape() const {
    std::int64_t elements = 1;
    for (std::int64_t size : tensor_.shape) {
      scope_.require(size >= 0, "a planned tensor has a negative dimension", "{}", size);
      elements = multiply(elements, size);
    }
    scope_.require(elements != kNone && multiply(elements, info(tensor_.dtype).bits) != kNone,
                   "a planned tensor is too large");
    scope_.require(tensor_.rows >= 0 && has_columns(tensor_.cols) && multiply(tensor_.rows, tensor_.cols) == elements,
                   "rows and columns of a planned tensor are not its shape", "[{}, {}]", tensor_.rows, tensor_.cols);
  }

  // The last dimension, or the last ones together.
  bool has_columns(std::int64_t cols) const {
    std::int64_t product = 1;
    for (auto size = tensor_.shape.rbegin(); size != tensor_.shape.rend(); ++size) {
      product = multiply(product, *size);
      if (product == kNone) return false;
      if (product == cols) return true;
    }
    return tensor_.shape.empty() && cols == 1;
  }

  void check_block(const Block& block) const {
    const View& view = block.source;
    scope_.require(view.rows > 0 && view.cols > 0, "a block is empty", "[{}, {}]", view.rows, view.cols);
    const std::int64_t row_end = add(block.row, view.rows);
    const std::int64_t last_col = add(block.col, multiply(view.cols - 1, block.col_step));
    scope_.require(block.row >= 0 && row_end != kNone && row_end <= tensor_.rows && block.col >= 0 &&
                       block.col_step >= 1 && last_col != kNone && last_col < tensor_.cols,
                   "a block leaves its planned tensor", "[{}, {}] at row {}, column {} step {}", view.rows, view.cols,
                   block.row, block.col, block.col_step);
    scope_.require(std::isfinite(block.scale), "a block's scale is not finite", "{}", block.scale);
  }

  void check_source(const Block& block) const {
    const View& view = block.source;
    const TensorInfo& source = scope_.source_of(view, "a block's source");
    if (block.scales) {
      scope_.require(is_float(tensor_.dtype), "a quantised block cannot be converted", "{}", info(tensor_.dtype).name);
      return check_scales(scope_, block);
    }
    const int bits = info(source.dtype).bits;
    const bool moved = source.dtype == tensor_.dtype && block.scale == 1 && !tensor_.merge;
    scope_.require(moved || (is_float(source.dtype) && is_float(tensor_.dtype)), "a block cannot be converted",
                   "{} to {}", info(source.dtype).name, info(tensor_.dtype).name);
    scope_.check_bounds(view, elements_of(source, bits), "a block's source");
    if (bits % 8 != 0) check_whole(block, view);
  }

  // Elements of less than a byte cannot be addressed; such tensors are only copied whole.
  void check_whole(const Block& block, const View& view) const {
    scope_.require(view.offset == 0 && block.col_step == 1 && view.col_stride == 1 && view.row_stride == view.cols &&
                       view.rows == tensor_.rows && view.cols == tensor_.cols,
                   "a tensor of a sub-byte dtype can only be copied whole", "{}", info(tensor_.dtype).name);
  }

  const TensorScope scope_;
  const PlannedTensor& tensor_;
};

void check_names(const PlannedFile& file) {
  std::vector<std::string_view> names;
  names.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) names.push_back(tensor.name);
  if (!std::is_sorted(names.begin(), names.end())) std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return;
  throw Error(ErrorCode::INTERNAL,
              {.file = file.name, .tensor = std::string(*twice), .problem = "two planned tensors have the same name"});
}

}  // namespace

void check(const Plan& plan) {
  for (const PlannedFile& file : plan.files) {
    check_names(file);
    for (const PlannedTensor& tensor : file.tensors) TensorCheck(plan, file, tensor).run();
  }
}

}  // namespace peft::plan
