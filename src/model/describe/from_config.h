// A model from its config.json, the family table and the table of module trees. What they do not say stays out, with a
// note.
#pragma once

#include <memory>

#include "model/config_json/config_facts.h"
#include "model/families/table.h"
#include "peft/model.h"

namespace peft::model {

// A type that neither table has is described by the names of the adapter (options.names).
Model model_from_config(const std::shared_ptr<const Table>& table, ConfigFacts facts, const DescribeOptions& options);

}  // namespace peft::model
