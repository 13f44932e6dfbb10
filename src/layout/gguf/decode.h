// LoRA files of llama.cpp as factors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layout/decode/context.h"
#include "layout/gguf/names.h"

namespace peft::layout {

// The names that fit the file's architecture and its tensors: those of `model_type` where that is given. Throws
// MD_FAMILY when it is of another architecture, or when the architecture is unknown.
const GgufNames& gguf_names_of(const Adapter& adapter, const std::string& model_type);
// The modules of the file's pairs, as transformers 5 calls them. What is no pair is left out.
std::vector<std::string> gguf_module_names(const Adapter& adapter, const GgufNames& names);

// The weights of any adapter, ready to be read: of a GGUF file, where the architecture permutes q and k, with their
// rows in transformers' order. Only these tensors are read. Throws MD_NEEDED when the model's number of heads is not
// known.
std::shared_ptr<const TensorFile> with_rows_in_order(const Adapter& adapter, const Model& model);

// Adds the file's factors to the reading.
void decode_gguf(Context& context);

}  // namespace peft::layout
