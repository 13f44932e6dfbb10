// LoRA files of llama.cpp as adapters.
#pragma once

#include <string>

#include "peft/adapter.h"

namespace peft::adapter {

bool is_gguf(const std::string& path);  // a file that begins as GGUF files do

// The config holds what the metadata says. Throws IO_KIND for a file that is no LoRA adapter.
Adapter open_gguf(const std::string& path, const OpenOptions& options);

}  // namespace peft::adapter
