// README.md beside an adapter: what hubs read to know whose adapter it is.
#pragma once

#include <string>

#include "peft/config.h"

namespace peft::nn {

// The fields that PEFT fills in.
std::string model_card(const AdapterConfig& config);

}  // namespace peft::nn
