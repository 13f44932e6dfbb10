// Several adapters of one folder, written in one step: all of them appear, or none.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "peft/plan.h"

namespace peft::cli {

// One plan that writes each part into its subfolder ("" is the output folder itself).
Plan combine_plans(std::vector<std::pair<std::string, Plan>> parts);

}  // namespace peft::cli
