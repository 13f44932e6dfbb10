// The files of an adapter in a layout: what an encoder gave becomes weights and a config in a plan.
#pragma once

#include "layout/encode/encoded.h"
#include "peft/config.h"
#include "peft/plan.h"

namespace peft::layout {

// Adds the weights file and the config that belongs to it, under the names that the layout's program looks for, and the
// encoder's steps and warnings. `source` is the config of the adapter that was read.
void add_adapter_files(Plan& plan, Encoded encoded, const AdapterConfig& source, const Model& model, Layout to);

}  // namespace peft::layout
