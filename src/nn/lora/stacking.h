// The factors of one fused parameter, from the pairs of its experts.
#pragma once

#include <span>
#include <vector>

#include "nn/lora/site.h"
#include "peft/adapter.h"
#include "peft/model.h"

namespace peft::nn {

// What of `group` (all factors of one experts module) belongs to the parameter; by projection, by expert.
struct ExpertPairs {
  std::vector<std::vector<const Factor*>> parts;
  std::vector<const Factor*> all;
};
ExpertPairs pairs_of(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts);

// One stack of them. Gate and up share their components where they share A in every expert; else gate's come first
// and B is block-diagonal, as PEFT converts. Experts without a pair are zero. One scale serves all: what has another
// is multiplied into B. Shapes that do not fit the base are LO_SHAPE.
SiteFactors stack_pairs(const TensorFile& file, const Site& site, const ExpertsForm::Fused& parameter,
                        const ExpertPairs& pairs, bool fused_layout);

}  // namespace peft::nn
