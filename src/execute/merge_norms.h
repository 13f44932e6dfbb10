// How large the matrices and the updates of a merge are: for reports.
#pragma once

#include <span>
#include <vector>

#include "peft/execute.h"

namespace peft::execution {

// Of some files, in the order of the plan. Reads every matrix that changes; the sums do not depend on the number of
// threads.
std::vector<MergedMatrix> merged_norms(const Plan& plan, std::span<const std::size_t> files, int threads);

}  // namespace peft::execution
