#include "execute/share.h"

#include <algorithm>
#include <numeric>

namespace peft::execution {

std::vector<std::size_t> share_of(std::span<const std::uint64_t> sizes, int part, int parts) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  std::vector<std::uint64_t> bytes(static_cast<std::size_t>(parts));
  std::vector<std::size_t> share;
  for (const std::size_t file : order) {
    const auto least = std::min_element(bytes.begin(), bytes.end());
    *least += sizes[file];
    if (least - bytes.begin() == part - 1) share.push_back(file);
  }
  std::sort(share.begin(), share.end());
  return share;
}

}  // namespace peft::execution
