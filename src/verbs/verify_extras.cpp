#include "verbs/verify_extras.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "adapter/view_math.h"
#include "base/float_formats.h"
#include "verbs/verify_rounding.h"

namespace peft::verbs {
namespace {

constexpr std::int64_t kBlock = 4096;

std::string shape_text(const TensorInfo& tensor) { return fmt::format("[{}]", fmt::join(tensor.shape, ", ")); }

// A vector may be stored with further dimensions of 1, as some programs write DoRA magnitudes.
bool same_shape(const TensorInfo& x, const TensorInfo& y) {
  const auto significant = [](std::span<const std::int64_t> shape) {
    std::vector<std::int64_t> rest(shape.begin(), shape.end());
    std::erase(rest, 1);
    return rest;
  };
  return significant(x.shape) == significant(y.shape);
}

struct Distance {
  Match match;
  double relative = 0;
  std::int64_t first = -1;  // index of the first element that differs
};

Distance measure(const adapter::Matrix& x, const adapter::Matrix& y) {
  Distance result;
  double sum_x = 0, sum_y = 0, sum_difference = 0;
  std::array<double, kBlock> vx, vy;
  for (std::int64_t begin = 0; begin < x.cols; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, x.cols - begin);
    adapter::read(x.col_range(begin, count), vx);
    adapter::read(y.col_range(begin, count), vy);
    const auto size = static_cast<std::size_t>(count);
    result.match &= match({vx.data(), size}, {x.dtype, 1}, {vy.data(), size}, {y.dtype, 1});
    for (std::size_t i = 0; i < size; ++i) {
      const double difference = vx[i] - vy[i];
      if (difference != 0 && result.first < 0) result.first = begin + static_cast<std::int64_t>(i);
      sum_x += vx[i] * vx[i], sum_y += vy[i] * vy[i], sum_difference += difference * difference;
    }
  }
  const double ratio = std::sqrt(sum_difference / std::max(sum_x, sum_y));
  result.relative = result.match.exact ? 0 : std::isfinite(ratio) ? ratio : 1;
  return result;
}

}  // namespace

Verdict compare_tensors(const TensorFile& file_x, const TensorInfo& x, const TensorFile& file_y, const TensorInfo& y) {
  if (!same_shape(x, y)) return {Exactness::lossy, 1, fmt::format("shape {} and {}", shape_text(x), shape_text(y))};
  const adapter::Matrix mx = adapter::bind(file_x, x), my = adapter::bind(file_y, y);
  if (adapter::equal(mx, my)) return {};
  if (!is_float(x.dtype) || !is_float(y.dtype)) {
    return {Exactness::lossy, 1, fmt::format("the bytes differ ({} and {})", x.dtype_name, y.dtype_name)};
  }
  const Distance distance = measure(mx, my);
  if (distance.match.exact) return {Exactness::value_exact, 0, "equal values"};
  if (distance.match.near) return {Exactness::rounded, distance.relative, "equal up to one rounding of each element"};
  return {Exactness::lossy, distance.relative, fmt::format("the first difference is at element {}", distance.first)};
}

}  // namespace peft::verbs
