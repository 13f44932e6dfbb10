// Two names of one module. A checkpoint of the bare model lacks the prefix of a model with a head ("bert."), and
// composites put their parts in another place since transformers 4.52. The loader of transformers takes either.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "peft/model.h"

namespace peft::model {

// Further names of a module, by the table's rows "same_prefixes". None for a family with a row of experts, which
// states its own.
std::vector<std::string> other_names(const Model& model, std::string_view module);

}  // namespace peft::model
