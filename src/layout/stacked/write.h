// Writes experts stacked in three dimensions, as read.h describes them, and everything dense as PEFT does. A side that
// all experts share, bit for bit, is written once.
#pragma once

#include "layout/encode/encode.h"

namespace peft::layout {

Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options);

}  // namespace peft::layout
