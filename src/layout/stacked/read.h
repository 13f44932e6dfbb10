// Reads experts that are stacked in three dimensions: <experts>.{w1,w2,w3}.lora_A.weight [E or 1, r, in] and
// lora_B.weight [E or 1, out, r], as Tinker, vLLM's shared LoRAs and SGLang have them. w1 is gate, w2 down, w3 up.
// Everything else of such files is as PEFT writes it.
#pragma once

#include <string>

#include "layout/decode/named_pair.h"

namespace peft::layout {

// Whether the slot is such a stack: its name and the dimensions of its tensors say so.
bool is_stacked(const Adapter& adapter, const Slot& slot);
// The module that holds the experts of a stacked slot.
std::string_view stacked_module(const Slot& slot);
// The pair of a stacked slot. Throws LO_SHAPE for shapes that are no stack, LO_EXPERT where neither side shows how many
// experts there are and the model does not either.
NamedPair stacked_pair(const Context& context, const Slot& slot);

}  // namespace peft::layout
