// One matrix of two models: what changed, as factors.
#pragma once

#include <optional>

#include "verbs/new_adapter.h"
#include "verbs/two_models.h"

namespace peft::verbs {

// The weights of a unit's sites in both models.
struct UnitWeights {
  Unit unit;
  std::int64_t in = 0;
  std::vector<Weight> base, finetuned;  // one for each site
};

struct ExtractedUnit {
  std::optional<StoredPair> pair;  // absent: nothing changed but what a cast explains
  double norm = 0, error = 0;      // of the difference, and of what is stored minus it
};
// Keeps singular values above what rounding the fine-tuned weights to their dtype can make up, at most `rank`.
ExtractedUnit extract_unit(const UnitWeights& weights, const WeightsOf& base, const WeightsOf& finetuned,
                           std::int64_t rank, Dtype dtype);

std::uint64_t memory_of(const UnitWeights& weights);

}  // namespace peft::verbs
