#include "execute/merge_sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/element.h"
#include "execute/op.h"

namespace peft::execution {
namespace {

constexpr std::int64_t kEveryRow = 32, kEveryPanel = 509;

// How many representable values lie between two of the same dtype.
double steps_between(Dtype dtype, const std::byte* a, const std::byte* b) {
  const auto ordered = [&](const std::byte* at) {
    std::uint64_t bits = 0;
    const auto size = static_cast<std::size_t>(element_size(dtype));
    std::memcpy(&bits, at, size);
    const std::uint64_t sign = std::uint64_t{1} << (8 * size - 1);
    const auto magnitude = static_cast<double>(bits & (sign - 1));
    return (bits & sign) != 0 ? -magnitude : magnitude;
  };
  return std::fabs(ordered(a) - ordered(b));
}

}  // namespace

std::size_t first_sampled(std::int64_t row, std::int64_t panel) {
  std::int64_t block = (row + kEveryRow - 1) / kEveryRow;
  block += (kEveryPanel - (block + panel) % kEveryPanel) % kEveryPanel;
  return static_cast<std::size_t>(block * kEveryRow - row);
}

void compare_sample(const SampleDtypes& dtypes, const double* exact, std::size_t count, const std::byte* results,
                    std::int64_t step, MergeError& error) {
  for (std::size_t j = 0; j < count; ++j) {
    std::byte right[sizeof(double)], as_base[sizeof(double)];
    store_element(dtypes.base, exact[j], as_base);
    store_element(dtypes.out, load_element(dtypes.base, as_base), right);
    const std::byte* result = results + static_cast<std::int64_t>(j) * step * element_size(dtypes.out);
    const double steps = steps_between(dtypes.out, right, result);
    ++error.sampled;
    if (steps != 0) ++error.different;
    error.max_ulps = std::max(error.max_ulps, steps);
  }
}

}  // namespace peft::execution
