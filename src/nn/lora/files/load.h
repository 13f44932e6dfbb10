// An adapter folder in any layout, or several adapters combined, as factors on the model's modules.
#pragma once

#include <string>
#include <vector>

#include "nn/lora/state.h"

namespace peft::nn {

void load_adapter_folder(PeftModel::Impl& impl, const std::string& name, const std::string& folder,
                         const AdapterModelOptions& options);
// add_weighted_adapter: the core combines the factors, in fp64 and without PEFT's cross terms and double scales.
void combine_adapters(PeftModel::Impl& impl, const std::vector<std::string>& names, const std::vector<double>& weights,
                      const std::string& name, const WeightedOptions& options);

}  // namespace peft::nn
