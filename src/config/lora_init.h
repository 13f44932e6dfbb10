// The names of init_lora_weights, told apart as LoraLayer.update_layer of PEFT 0.21.2 does.
#pragma once

#include <optional>
#include <string_view>

namespace peft::config {

enum class LoraInit { standard, random, gaussian, orthogonal, pissa, olora, corda, loftq, eva, mica, lora_ga };

// Nothing for a name that PEFT cannot start an adapter with.
std::optional<LoraInit> lora_init(std::string_view init_lora_weights);

// N of pissa_niter_N: steps of a randomised SVD. Nothing: the whole SVD.
std::optional<int> pissa_iterations(std::string_view init_lora_weights);

// Whether the base became another one: the adapter alone is not the whole change.
bool changes_base(std::string_view init_lora_weights);

}  // namespace peft::config
