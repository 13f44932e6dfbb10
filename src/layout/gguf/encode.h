// Factors as a LoRA file for llama.cpp.
#pragma once

#include "layout/encode/encoded.h"
#include "peft/adapter.h"

namespace peft::layout {

// One tensor pair for each matrix, and one for each projection of all experts of a layer. A file has one alpha, and the
// scale of a pair is alpha / its rank: where a factor has another scale, the difference is folded into its B. Ranks are
// padded with zeros within one stack of experts only. Throws LO_NO_FORM for what llama.cpp does not take.
Encoded encode_gguf(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options);

}  // namespace peft::layout
