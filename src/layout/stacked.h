// Experts that are stacked in three dimensions: <experts>.{w1,w2,w3}.lora_A.weight [E or 1, r, in] and lora_B.weight
// [E or 1, out, r], as Tinker, vLLM's shared LoRAs and SGLang have them. w1 is gate, w2 down, w3 up. A side with 1 on
// the first axis is that of all experts. Everything else of such files is as PEFT writes it; rank and alpha are one.
#pragma once

#include <string>
#include <string_view>

#include "layout/decode/named_pair.h"
#include "layout/encode/encoded.h"
#include "peft/model.h"

namespace peft::layout {

// "w1" is gate, "w2" down, "w3" up; Projection::none for other names.
Projection stacked_projection(std::string_view name);
// A dense module of Tinker as transformers calls it. Few are called otherwise (gpt_oss: attn for self_attn).
std::string from_tinker(const Model& model, std::string_view module);

// Whether the slot stands for a projection that the experts do not have: Tinker writes w3 of two-layer experts with no
// elements.
bool is_empty_stack(const Adapter& adapter, const Slot& slot);
// Whether the slot is such a stack: its name and the dimensions of its tensors say so.
bool is_stacked(const Adapter& adapter, const Slot& slot);
// The pair of a stacked slot. Throws LO_SHAPE for shapes that are no stack, LO_EXPERT where neither side shows how many
// experts there are and the model does not either.
NamedPair stacked_pair(const Context& context, const Slot& slot);

// A side that all experts share, bit for bit, is written once.
Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options);

}  // namespace peft::layout
