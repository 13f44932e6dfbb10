#include "layout/common_scale.h"

#include <algorithm>
#include <utility>

namespace peft::layout {

double common_scale(const std::vector<const Factor*>& factors) {
  std::vector<std::pair<double, int>> counts;
  for (const Factor* factor : factors) {
    auto at = std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == factor->scale; });
    if (at == counts.end())
      counts.emplace_back(factor->scale, 1);
    else
      ++at->second;
  }
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& x, const auto& y) {
                            return std::pair(x.first != 0, x.second) < std::pair(y.first != 0, y.second);
                          })
      ->first;
}

double folded_gain(const Factor& factor, double common) { return factor.scale == common ? 1 : factor.scale / common; }

}  // namespace peft::layout
