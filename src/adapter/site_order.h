// The order in which factors are listed: by module as people count, then by parameter, expert and projection.
#pragma once

#include "base/text.h"
#include "peft/adapter.h"

namespace peft {

inline bool site_less(const Site& x, const Site& y) {
  if (x.module != y.module) return natural_less(x.module, y.module);
  if (x.parameter != y.parameter) return x.parameter < y.parameter;
  if (x.expert != y.expert) return x.expert < y.expert;
  return x.projection < y.projection;
}

}  // namespace peft
