// A model from the headers of its checkpoint and its config.json.
#pragma once

#include <memory>

#include "model/config_json/config_facts.h"
#include "model/families/table.h"
#include "peft/model.h"

namespace peft::model {

// options.base is the folder of the checkpoint. Names and shapes come from its tensors. Of a type that the table lacks
// the modules are taken as the tensors name them, unless it has experts: that throws MD_FAMILY.
Model model_from_checkpoint(const std::shared_ptr<const Table>& table, ConfigFacts facts,
                            const DescribeOptions& options);

}  // namespace peft::model
