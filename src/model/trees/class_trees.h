// The module trees of classes of transformers. data/module_trees.json has the modules of a class as templates over its
// config; tools/module_trees reads them off the real class. docs/add_a_family.md says what each field means.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/expression.h"
#include "peft/model.h"

namespace peft::model {

// "model.layers.{i}.self_attn.q_proj": one module for each number, where the condition holds.
struct TreeRow {
  std::string path;
  std::string class_name;
  ModuleKind kind = ModuleKind::other;
  std::vector<std::pair<std::string, std::vector<std::string>>> parameters;  // name, formulas of its dimensions
  std::vector<std::string> when;                                             // alternatives; none: always
};

// The value that a class gives a key that the config leaves out.
struct DerivedKey {
  std::string by_layer;  // its name in per_layer_config, where transformers 5 saves what differs by layer
  std::string formula;   // of a number
  std::string length;    // of a list; its elements:
  std::vector<std::pair<Json, std::vector<std::string>>> kinds;  // the first one whose condition holds for i
};

struct ConfigKeys {
  Json defaults = Json::object();                                        // by path: "text_config.hidden_size"
  std::map<std::string, std::vector<std::string>, std::less<>> aliases;  // other names of a key
  std::map<std::string, DerivedKey, std::less<>> derived;
};

struct TreeRows {
  std::string input_embedding, output_embedding;
  std::map<std::string, std::string, std::less<>> counts;  // "model.layers" -> how many
  std::vector<TreeRow> rows;                               // in registration order
  std::shared_ptr<const ConfigKeys> keys;
};

struct ClassTrees {
  std::string class_name;  // as in a config's "architectures"
  std::shared_ptr<const TreeRows> v4, v5;
  const std::shared_ptr<const TreeRows>& rows(Generation g) const { return g == Generation::v4 ? v4 : v5; }
};

// A class with another head, or without one: its body is that of a class with trees.
struct ClassBody {
  std::string of;           // "LlamaForCausalLM"
  std::string prefix, own;  // its modules begin with "model."; those of this class with "transformer."
};

struct TypeTrees {
  std::vector<ClassTrees> classes;  // the usual one first
  std::map<std::string, ClassBody, std::less<>> bodies;

  const ClassTrees* find(std::string_view class_name) const;
};

// nullptr for a model type that is not there.
const TypeTrees* find_trees(std::string_view model_type);

// The output embedding of a class in transformers 5; "" for classes without one: models without a head, classifiers.
// nullopt: the table does not know the class.
std::optional<std::string> output_embedding_of(std::string_view model_type, std::string_view class_name);

// The values of the names in the formulas of a tree, for one config. A key that the config leaves out has the value
// that the class gives it.
class ConfigValues {
 public:
  ConfigValues(const Json& config, std::shared_ptr<const ConfigKeys> keys);
  std::optional<Value> operator()(std::string_view path) const;

 private:
  const Json* find(std::string_view path) const;
  const Json* find_by_layer(std::string_view path, const std::string& key) const;
  std::optional<Value> derive(const std::string& path, const DerivedKey& key) const;

  const Json& config_;
  std::shared_ptr<const ConfigKeys> keys_;
  mutable std::map<std::string, Json, std::less<>> made_;  // derived lists, which values point to
};

// The tree of a class for one config. A formula that cannot be computed leaves a shape empty and the tree incomplete.
// Throws MD_FORM, naming `file`, for a config with more modules than any model has.
ModuleTree tree_from_rows(const TreeRows& rows, const Json& config, const std::string& file);

// The tree of a class that has the body of another: the modules below the prefix, under its own prefix.
ModuleTree body_of(const ModuleTree& tree, const ClassBody& body);

}  // namespace peft::model
