// Adapters in the weights of the base, with PEFT's roundings, and out again.
//
// Input and output embedding may be one tensor of the base. An unmerged adapter acts on the module it is on. Merged
// into the shared tensor it would act on both, so while it is merged the output embedding has a tensor of its own, as
// in the folder that `peft merge` writes.
#pragma once

#include <vector>

#include "nn/lora/state.h"

namespace peft::nn {

void merge_adapters(PeftModel::Impl& impl, const MergeOptions& options, const std::vector<int>& ids);
void unmerge_adapters(PeftModel::Impl& impl);
// After a merge for good: two embeddings that became two tensors are two from now on.
void stay_untied(PeftModel::Impl& impl);
// A token of which several of these adapters, or merged ones, have rows: USAGE.
void require_rows_disjoint(const PeftModel::Impl& impl, const std::vector<int>& ids);

}  // namespace peft::nn
