// Reads adapters of MLX-LM: <module>.lora_a [in, r] and lora_b [r, out]; of switch layers lora_a [E, r, in] (before
// 0.28.3 [E * r, in]) and lora_b [E, out, r]. Rank and scale stand in the config, once for all pairs.
#pragma once

#include <string>
#include <vector>

#include "layout/decode/named_pair.h"

namespace peft::layout {

void read_mlx(Context& context);
// Names that show describe() the model's layers and experts.
std::vector<std::string> mlx_module_names(const Adapter& adapter);

}  // namespace peft::layout
