// The adapter_config.json that belongs to encoded factors.
#pragma once

#include <string>
#include <vector>

#include "layout/encode.h"
#include "peft/config.h"

namespace peft::layout {

// `source` with targets, ranks, alphas and generation replaced so that PEFT builds exactly the wrappers of `encoded`.
// Everything else is kept. What could not be kept is said in `warnings`.
AdapterConfig write_config(const AdapterConfig& source, const Encoded& encoded, const Model& model, Layout to,
                           std::vector<std::string>& warnings);

// The alpha that gives `scale` at this rank, as short as it can be written: 10, not 10.000000000000002.
Number alpha_for_scale(double scale, std::int64_t rank, bool use_rslora);

}  // namespace peft::layout
