// README.md beside an adapter: what hubs read to know whose adapter it is.
#pragma once

#include <string>

#include "peft/config.h"

namespace peft::nn {

// The card of the folder as it is, or a new one with the fields that PEFT fills in.
std::string model_card(const std::string& folder, const AdapterConfig& config);

}  // namespace peft::nn
