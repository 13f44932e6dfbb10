// The merged model as a GGUF file: the type of each tensor, and the files.
#pragma once

#include <string>
#include <vector>

#include "peft/verbs.h"
#include "verbs/merge/gguf/gguf_model.h"
#include "verbs/merge/output.h"

namespace peft::merging {

// The type that a tensor gets when it changes: its own, unless it is quantised or --out-dtype says otherwise.
gguf::GgmlType written_type(const gguf::GgufFile& file, const TensorInfo& tensor, const MergeOptions& options);

// All tensors as copies.
OutTensors tensors_of(const GgufModel& base, const MergeOptions& options);

// What a file's metadata says of the adapters that are merged into it.
Metadata merged_before(const gguf::GgufFile& file);

// Gives the tensors that change their types, and says so in the plan's steps and warnings.
void set_types(const GgufModel& base, const MergeOptions& options, std::vector<OutTensor>& tensors, Plan& plan);

// Moves the tensors into the plan's files. Parts get their place in the plan.
void write_gguf_files(const GgufModel& base, const MergeOptions& options, std::vector<OutTensor>& tensors,
                      const std::string& record, MergePlan& result);

}  // namespace peft::merging
