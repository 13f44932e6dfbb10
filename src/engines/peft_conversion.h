// What PEFT makes of a per-expert adapter when it loads it on transformers 5: it stacks the experts, doubles rank and
// alpha of gate and up, and rewrites the targets. Facts about where that fails or changes the function.
#pragma once

#include "engines/facts.h"
#include "peft/adapter.h"
#include "peft/layout.h"

namespace peft::engines {

// Sets the facts of the group "what PEFT's conversion makes of it". The file is per expert.
void add_conversion_facts(const Adapter& adapter, const Model& model, const Reading& reading, AdapterFacts& facts);

}  // namespace peft::engines
