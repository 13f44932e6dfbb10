// The factors of one fused parameter, gathered: what the encoder of fused layouts and the runtime work on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layout/fused_forms.h"

namespace peft::layout {

// The factors of one fused parameter: parts[p][e], null where an expert has none.
struct Stack {
  std::vector<std::vector<const Factor*>> parts;
  std::int64_t experts = 0;
  std::vector<std::int64_t> ranks;  // of each part: the largest of its experts
  std::int64_t rank = 0;            // of the fused pair
  bool shared_a = false;
  double scale = 1;
  Dims dims;                      // natural widths of the fused matrix
  std::vector<std::int64_t> out;  // rows of each part
};

// Of `group`, all factors of one experts module, those of the parameter. The sizes are not filled in.
Stack collect(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts);

// Its factors, part by part.
std::vector<const Factor*> all_of(const Stack& stack);

}  // namespace peft::layout
