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
// After merge_and_unload: embeddings that the merge made two tensors stay two.
void stay_untied(PeftModel::Impl& impl);
// Throws USAGE where two of these adapters, or of those merged already, have a row for the same token.
void require_rows_disjoint(const PeftModel::Impl& impl, const std::vector<int>& ids);

}  // namespace peft::nn
