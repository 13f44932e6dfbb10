#include "layout/stack.h"

#include <algorithm>

namespace peft::layout {

Stack collect(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts) {
  Stack stack;
  stack.experts = experts;
  const std::size_t parts = std::max<std::size_t>(1, parameter.projections.size());
  stack.parts.assign(parts, std::vector<const Factor*>(static_cast<std::size_t>(experts), nullptr));
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.expert >= experts) continue;
    for (std::size_t p = 0; p < parts; ++p) {
      const bool mine = parameter.projections.empty()
                            ? factor.site.parameter == parameter.name
                            : factor.site.parameter.empty() && factor.site.projection == parameter.projections[p];
      if (mine) stack.parts[p][static_cast<std::size_t>(factor.site.expert)] = &factor;
    }
  }
  return stack;
}

std::vector<const Factor*> all_of(const Stack& stack) {
  std::vector<const Factor*> all;
  for (const auto& part : stack.parts) {
    for (const Factor* factor : part) {
      if (factor != nullptr) all.push_back(factor);
    }
  }
  return all;
}

}  // namespace peft::layout
