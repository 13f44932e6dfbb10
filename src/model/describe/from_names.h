// A model from the names of an adapter.
#pragma once

#include <memory>

#include "model/families/table.h"
#include "peft/model.h"

namespace peft::model {

// Without a family: the layers of the families that the names fit. Families that read the names differently give a
// model without experts, with a note that names them.
Model model_from_names(const std::shared_ptr<const Table>& table, const DescribeOptions& options);

// With options.family.
Model model_from_family(const std::shared_ptr<const Table>& table, const DescribeOptions& options);

}  // namespace peft::model
