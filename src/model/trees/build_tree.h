// Steps of building a module tree, and the same tree in the names of the other generation.
#pragma once

#include "peft/model.h"

namespace peft::model {

// Adds a module. The weight of one that owns its parameters becomes one of them.
void append_module(ModuleTree& tree, Module module);
// Adds the experts of one layer as the generation has them: a module for each expert, or parameters of one module.
void append_experts(ModuleTree& tree, const Model& model, const Experts& experts, Generation g);
// Finds the embeddings and the output by their names, and builds the lookup tables.
void finish_tree(ModuleTree& tree);

// The tree in the names and forms of a generation.
ModuleTree rename_tree(const Model& model, const ModuleTree& tree, Generation from, Generation to);

}  // namespace peft::model
