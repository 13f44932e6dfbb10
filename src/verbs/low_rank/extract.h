// What changed in one group of matrices between two models, as factors.
#pragma once

#include <optional>

#include "verbs/low_rank/new_adapter.h"
#include "verbs/model_weights.h"

namespace peft::verbs {

// The weights of a group's sites in both models.
struct GroupWeights {
  MatrixGroup group;
  std::int64_t in = 0;
  std::vector<Weight> base, finetuned;  // one for each site
};

struct ExtractedGroup {
  std::optional<StoredPair> pair;  // absent: nothing changed but what a cast explains
  double norm = 0, error = 0;      // of the difference, and of what is stored minus it
};
// Keeps singular values above what rounding the fine-tuned weights to their dtype can make up, at most `rank`.
ExtractedGroup extract_group(const GroupWeights& weights, const ModelWeights& base, const ModelWeights& finetuned,
                             std::int64_t rank, Dtype dtype);

// Bytes that extract_group needs at its peak.
std::uint64_t memory_of(const GroupWeights& weights);

}  // namespace peft::verbs
