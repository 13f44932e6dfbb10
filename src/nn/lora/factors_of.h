// An adapter in memory as the core's factors, for its encoders and for combining.
#pragma once

#include <memory>

#include "nn/lora/impl.h"
#include "nn/lora/memory_file.h"
#include "peft/adapter.h"

namespace peft::nn {

struct InMemory {
  std::unique_ptr<MemoryFile> memory;  // what the views of `factors` look at
  Factors factors;
};
InMemory factors_of(const PeftModel::Impl& impl, const AdapterEntry& entry);

}  // namespace peft::nn
