// How new factors start: PEFT's init_lora_weights, for what needs no data.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/lora/site.h"
#include "peft/config.h"

namespace peft::nn {

// Refuses names that are not implemented (CF_UNSUP): those that need data (eva, corda, lora_ga), loftq, mica.
void require_known_init(const AdapterConfig& config);
// Whether it is taken out of the base's weight: PiSSA and OLoRA.
bool starts_from_weight(const std::string& init);

// Gives a and b their first values; `factors.stack` has their shapes. Values are drawn on the CPU, so that they are the
// same on every device. For PiSSA and OLoRA the site's weight becomes W - scale * B A, rounded once.
void initialise(Site& site, SiteFactors& factors, const std::string& init, at::Generator& generator);

}  // namespace peft::nn
