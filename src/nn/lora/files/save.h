// save_pretrained: the files PEFT writes, in folders that appear complete or not at all.
#pragma once

#include <string>

#include "nn/lora/state.h"

namespace peft::nn {

void save_adapters(const PeftModel::Impl& impl, const std::string& folder, const SaveOptions& options);

}  // namespace peft::nn
