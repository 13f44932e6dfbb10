// Adapters that another class of the base's family made: a composite model and its text class name the same layers, one
// with a further prefix.
#pragma once

#include <optional>

#include "peft/merge.h"

namespace peft::merging {

// The adapter read as one of such a class, its sites named as the base has them. nullopt: the base knows some of them
// under no such name, or the family has no other class.
std::optional<Reading> read_as_other_class(const Adapter& adapter, const Model& base, const MergeOptions& options);

}  // namespace peft::merging
