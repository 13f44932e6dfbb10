// Writes adapters of MLX-LM, as read.h describes them.
#pragma once

#include "layout/encode/encoded.h"

namespace peft::layout {

// Throws LO_NO_FORM where MLX-LM's name of a module is not known.
Encoded encode_mlx(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options);

}  // namespace peft::layout
