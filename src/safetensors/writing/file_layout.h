// The bytes before the data of a new file, as the safetensors library writes them. layout_file() of peft/safetensors.h
// is the form for users.
#pragma once

#include <span>

#include "peft/safetensors.h"

namespace peft {

// The layout of a file with tensors that are described elsewhere: by name, dtype and shape.
FileLayout file_layout_for(std::span<const TensorInfo> tensors, const Metadata& metadata);

}  // namespace peft
