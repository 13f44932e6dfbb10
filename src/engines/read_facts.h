// The facts of an adapter, read from its names, shapes and config.
#pragma once

#include "engines/facts.h"
#include "peft/adapter.h"
#include "peft/layout.h"

namespace peft::engines {

AdapterFacts facts_of(const Adapter& adapter, const Model& model, const Reading& reading);

// Replaces the facts about the form of the file by those of a layout: what facts_of() will say of a file that is going
// to be written.
void set_layout(AdapterFacts& facts, Layout layout, const Model& model);

}  // namespace peft::engines
