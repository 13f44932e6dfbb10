// A Model while describe() makes it: it begins with a row of the family table, and a source of facts (a checkpoint, a
// module tree, a config, names) adds the rest.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/config_json/config_facts.h"
#include "model/families/index.h"
#include "model/families/table.h"
#include "peft/model.h"

namespace peft::model {

struct Draft {
  Model model;
  std::shared_ptr<Model::Index> index;  // the finished Model shares it
  ConfigFacts facts;

  const Family* family() const { return index ? index->family.get() : nullptr; }
  // Whether that generation of transformers has the type. For a type without a row: true.
  bool exists(Generation g) const;
};

// Whether the table has the type, or has it as a part of another type.
bool is_known_type(const Table& table, const std::string& type);

// With the row of a model type, whose templates are indexed. Throws MD_FAMILY for a type that the table does not know.
Draft draft_for(std::shared_ptr<const Table> table, const std::string& model_type, const std::string& file);
// With the row of a base that states its model type. --family must agree with it, or stands in for a type that the
// table lacks. Throws MD_FAMILY where they differ.
Draft draft_for_base(const std::shared_ptr<const Table>& table, const std::string& stated,
                     const DescribeOptions& options);
// For dense types that only module_trees.json has. The type must have trees there.
Draft draft_for_trees(std::shared_ptr<const Table> table, const std::string& model_type);
// For dense types without a row: names stay as they are.
Draft draft_without_row(std::shared_ptr<const Table> table, const std::string& model_type);

// Adds the experts of one layer. The paths are those of the family; sizes come from the config where it has them.
Experts& add_experts(Draft& draft, std::size_t kind, std::int64_t layer);

// The output embedding of the config's class, as output_embedding_of() has it; nullopt for types of --families.
std::optional<std::string> own_output(const Draft& draft);

// Adds the facts that every model with a config has: the number of experts, the vocabulary, tied embeddings.
void finish(Draft& draft, const DescribeOptions& options);

}  // namespace peft::model
