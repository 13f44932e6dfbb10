// What a module tree shows of a model. Its names are those of one generation, or of both where the two do not differ.
// The names and shapes tell the generation, the number of experts and their sizes.
#pragma once

#include "model/describe/draft.h"

namespace peft::model {

// Takes over the experts and both trees from the tree of a file or checkpoint. `in_registration_order`: the modules
// come in the order of the class, as in a tree file.
void use_shown_tree(Draft& draft, ModuleTree shown, bool in_registration_order);

// Takes over the experts alone, from a tree that was made of the config itself.
void use_experts_of(Draft& draft, const ModuleTree& tree);

}  // namespace peft::model
