// Opening a safetensors file that is already found: what TensorFile::open and the shards of a checkpoint share.
#pragma once

#include <memory>

#include "peft/safetensors.h"
#include "safetensors/input_file.h"

namespace peft::safetensors {

std::shared_ptr<const TensorFile> open_tensor_file(const InputFile& file, const OpenOptions& options);

}  // namespace peft::safetensors
