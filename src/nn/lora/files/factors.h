// An adapter in memory: its tensors under PEFT's names, and as the core's factors for encoders and for combining.
#pragma once

#include <memory>
#include <vector>

#include "nn/lora/files/file_tensors.h"
#include "nn/lora/state.h"
#include "peft/adapter.h"

namespace peft::nn {

// Under PEFT's names, for saving, for optimisers and for counting.
std::vector<AdapterTensor> tensors_of(const PeftModel::Impl& impl, const AdapterEntry& entry);

struct InMemory {
  std::unique_ptr<MemoryFile> memory;  // what the views of `factors` look at
  Factors factors;
};
InMemory factors_of(const PeftModel::Impl& impl, const AdapterEntry& entry);

}  // namespace peft::nn
