#include "plan/view_check.h"

#include <algorithm>

#include "base/checked.h"

namespace peft::plan {
namespace {

std::optional<std::int64_t> sum(std::optional<std::int64_t> a, std::optional<std::int64_t> b) {
  return a && b ? checked_add(*a, *b) : std::nullopt;
}

}  // namespace

std::int64_t elements_of(const TensorInfo& source, int bits) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(source.bytes(), INT64_MAX / 8)) * 8 / bits;
}

const TensorInfo& TensorScope::tensor_of(const View& view, std::string_view what) const {
  require_of(what, view.source < plan_.sources.size() && plan_.sources[view.source] != nullptr, " does not exist", "{}",
             view.source);
  const auto tensors = plan_.sources[view.source]->tensors();
  require_of(what, view.tensor < tensors.size(), "'s tensor does not exist", "{}", view.tensor);
  return tensors[view.tensor];
}

const TensorInfo& TensorScope::source_of(const View& view, std::string_view what) const {
  const TensorInfo& tensor = tensor_of(view, what);
  require_of(what, info(tensor.dtype).bits > 0, " has no known dtype", "{}", tensor.dtype_name);
  return tensor;
}

void TensorScope::check_bounds(const View& view, std::int64_t elements, std::string_view what) const {
  require_of(what, view.rows > 0 && view.cols > 0, " is empty", "[{}, {}]", view.rows, view.cols);
  const auto down = checked_mul(view.rows - 1, view.row_stride), across = checked_mul(view.cols - 1, view.col_stride);
  const auto low = [](std::optional<std::int64_t> x) { return x ? std::optional(std::min<std::int64_t>(*x, 0)) : x; };
  const auto high = [](std::optional<std::int64_t> x) { return x ? std::optional(std::max<std::int64_t>(*x, 0)) : x; };
  const auto lowest = sum(view.offset, sum(low(down), low(across)));
  const auto highest = sum(view.offset, sum(high(down), high(across)));
  require_of(what, lowest && highest && *lowest >= 0 && *highest < elements, " leaves its tensor",
             "elements {} to {} of {}", lowest.value_or(-1), highest.value_or(-1), elements);
}

void TensorScope::check_view(const View& view, std::string_view what) const {
  const TensorInfo& source = source_of(view, what);
  const int bits = info(source.dtype).bits;
  require_of(what, bits % 8 == 0, " has elements of less than a byte", "{}", source.dtype_name);
  check_bounds(view, elements_of(source, bits), what);
}

}  // namespace peft::plan
