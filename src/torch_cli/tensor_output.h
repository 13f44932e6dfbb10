// One tensor as a safetensors file that appears complete or not at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace peft::torch_cli {

// Before the work that fills it: OUT_EXISTS if the file is there and may not be replaced.
void require_free(const std::string& path, bool overwrite);
// `tensor` as F32 under `name`: written beside `path`, synced, renamed.
void write_tensor(const std::string& path, const std::string& name, const at::Tensor& tensor, bool overwrite);

}  // namespace peft::torch_cli
