// From factors to the tensors of a layout, and to what its config must say.
#pragma once

#include "layout/encode/encoded.h"
#include "peft/adapter.h"

namespace peft::layout {

// `file` gives tensor contents and dtypes; null when only a config is converted. Throws LO_NO_FORM for what the
// layout cannot hold, with the reason and the alternative.
Encoded encode(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options);

}  // namespace peft::layout
