// Steps of describe(): a Model grows from a family row, what a tree or checkpoint shows, and a config.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/config_facts.h"
#include "model/families.h"
#include "model/index.h"
#include "model/json_file.h"
#include "peft/model.h"
#include "peft/safetensors.h"

namespace peft::model {

// A model in the making; the index is shared with the finished Model.
struct Draft {
  Model model;
  std::shared_ptr<Model::Index> index;
  ConfigFacts facts;

  const Family* family() const { return index ? index->family.get() : nullptr; }
};

// The row of a model type, with its templates indexed. Throws MD_FAMILY for a type the table does not know.
Draft draft_for(std::shared_ptr<const Table> table, const std::string& model_type, const std::string& file);
// For dense types that only module_trees.json has; there must be trees of the type.
Draft draft_for_trees(std::shared_ptr<const Table> table, const std::string& model_type);
// For dense types without a row: names are taken as they are.
Draft draft_without_row(std::shared_ptr<const Table> table, const std::string& model_type);

// Adds the experts of one layer; the paths are the family's, sizes come from the config where it has them.
Experts& add_experts(Draft& draft, std::size_t kind, std::int64_t layer);

// The modules as one source shows them, in whatever generation's names.                          tree_file.cpp
ModuleTree tree_from_file(const OrderedJson& json, const std::string& file, const Model::Index& index);
//                                                                                                tree_checkpoint.cpp
ModuleTree tree_from_checkpoint(const Checkpoint& checkpoint, const Draft& draft);
// Embeddings and outputs found by name; lookup tables.
void finish_tree(ModuleTree& tree);

// Experts and both trees from what a source shows.                                               shown.cpp
void use_shown_tree(Draft& draft, ModuleTree shown, bool in_registration_order);
// The output embedding of the config's class, as output_embedding_of() has it; nullopt for types of --families.
std::optional<std::string> own_output(const Draft& draft);
// Experts alone, from a tree that the config itself gave.
void use_experts_of(Draft& draft, const ModuleTree& tree);
// Experts and both trees from the config and the row alone.                                      from_config.cpp
void use_config_alone(Draft& draft);
// Experts from the names of an adapter.                                                          from_names.cpp
void use_names(Draft& draft, const std::vector<std::string>& names, std::int64_t num_experts);
Model model_from_names(std::shared_ptr<const Table> table, const std::vector<std::string>& names,
                       std::int64_t num_experts);

// One tree in the names and forms of the other generation.                                       tree_rename.cpp
ModuleTree rename_tree(const Model& model, const ModuleTree& tree, Generation from, Generation to);

// The modules of one layer's experts in a generation: one per expert, or parameters of one module.
void append_experts(ModuleTree& tree, const Model& model, const Experts& experts, Generation g);
// A module that owns parameters, with its weight among them.
void append_module(ModuleTree& tree, Module module);

}  // namespace peft::model
