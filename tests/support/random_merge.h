// Plans of merges for tests, and an oracle that knows nothing of the machinery: plain loops in the words of the
// documentation.
#pragma once

#include <string>
#include <vector>

#include "support/random_plan.h"

namespace peft::execution {

struct MergeCase {
  MergeMode mode = MergeMode::best;
  Dtype source = Dtype::bf16, base = Dtype::bf16, out = Dtype::bf16, adapter = Dtype::f32;
  int adapters = 1;
  bool dora = false, delta_is_rounded = false;
  double base_sigma = 0.05, delta_size = 0.1;  // of the delta, as part of the base's
};

// Adds a tensor of one of the shapes in which matrices lie in checkpoints, with its updates.
int num_merge_shapes();
void add_merge(PlanBuilder& builder, int shape, const std::string& name, std::int64_t size,
               const MergeCase& merge_case);

// The tensor's values as they must be. `exact`: not rounded, fp64 throughout, the formula of `best`.
std::vector<double> oracle(const Plan& plan, const PlannedTensor& tensor, bool exact);

}  // namespace peft::execution
