// The module tree of a class, from its rows and a config.
#pragma once

#include "model/tree_table.h"

namespace peft::model {

// Every module, with names, classes and shapes. A formula that cannot be computed leaves a shape empty and the tree
// incomplete. Throws MD_FORM, naming `file`, for a config with more modules than any model has.
ModuleTree tree_from_rows(const TreeRows& rows, const Json& config, const std::string& file);

// What a class shares with another: the modules below the prefix, under its own.
ModuleTree body_of(const ModuleTree& tree, const ClassBody& body);

}  // namespace peft::model
