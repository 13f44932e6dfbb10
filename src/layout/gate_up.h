// Gate and up that share lora_A: one A serves both, and the two B become the rows of one.
#pragma once

#include <optional>

#include "layout/stack.h"
#include "peft/safetensors.h"

namespace peft::layout {

// Gate and up of every expert have the same A: the rank need not double. Values are compared where views differ.
bool shares_a(const TensorFile* file, const Stack& stack);

// Gate and up of one expert as rows of one B: only what lies so in the file already can be moved so.
std::optional<View> joined_b(const Factor& gate, const Factor& up, bool interleaved);
bool all_join(const Stack& stack, bool interleaved);

}  // namespace peft::layout
