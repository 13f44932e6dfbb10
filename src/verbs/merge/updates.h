// From the factors of adapters to updates of planned tensors, and everything else an adapter may carry.
#pragma once

#include <vector>

#include "verbs/merge/base.h"
#include "verbs/merge/output.h"

namespace peft::merging {

// Adds all factors and extras. Returns whether the output embedding had to become a tensor of its own.
bool add_updates(const Base& base, const std::vector<MergeAdapter>& adapters, OutTensors& tensors);

}  // namespace peft::merging
