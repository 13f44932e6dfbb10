// What the rows of a family do not state and what follows from them.
#pragma once

#include <vector>

#include "model/families/table.h"

namespace peft::model {

// Family::kinds: which projection each module and parameter of the experts is, and its orientation.
void derive_kinds(Family& family, const std::vector<Json>& conversions);

// Family::renamings, from the rows of both generations. Needs the kinds.
void derive_renamings(Family& family);

}  // namespace peft::model
