// adapter_config.json of MLX-LM:
//
//   {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys":
//   [...]}}
//
// Rank and scale hold for every pair. num_layers counts from the last layer; 0 and below mean all layers. Older files
// have "lora_layers" and no "fine_tune_type"; the scale of those with an "alpha" is scale * alpha / rank. Source:
// MLX-LM 0.32.2, tuner/utils.py, and the LoRALinear of early 2024.
#pragma once

#include <string>

#include "peft/adapter.h"

namespace peft::adapter {

// Sets form, config and scale of the adapter. Throws CF_FORM and CF_VALUE for what is no such config, CF_UNSUP for DoRA
// and full fine-tuning.
void read_mlx_config(Adapter& adapter, const std::string& path);

// The config of `rank` and `scale` for MLX-LM. `keys`: module paths inside a layer, or whole ones outside of the
// layers.
std::string write_mlx_config(const AdapterConfig& source, std::int64_t rank, double scale, std::int64_t num_layers,
                             const std::vector<std::string>& keys);

}  // namespace peft::adapter
