// The bytes before the data of a new GGUF file, and where the data of each tensor begins.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gguf/types/ggml_type.h"
#include "gguf/value.h"
#include "peft/safetensors.h"

namespace peft::gguf {

struct NewGgufTensor {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<std::int64_t> shape;  // the slowest dimension first
};

// Version 3, little-endian; tensors and keys in the order given, as gguf-py writes them. The head ends at a multiple of
// the alignment: of `general.alignment` where the values have it, else of 32. The data of each tensor is followed by
// zeros up to such a multiple, and data_bytes counts them. What our reader would refuse is refused here.
FileLayout layout_gguf(std::span<const NewGgufTensor> tensors, const KeyValues& values);

}  // namespace peft::gguf
