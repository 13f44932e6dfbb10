// What locate(), rename(), kind() and has() look things up in: every path template of a family, by its key.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/families.h"
#include "model/path.h"
#include "peft/model.h"

namespace peft {

struct Model::Index {
  using PathTemplate = model::PathTemplate;
  // Where experts can stand: the module of all, a module of one projection of one expert, a split parameter's module.
  struct Place {
    PathTemplate path;
    std::size_t kind;
    Projection projection = Projection::none;
    const ExpertsForm::Fused* fused = nullptr;
    std::optional<Generation> fused_generation;
    Generation spelling;  // whose name this is
  };
  using PlaceMap = std::unordered_map<std::string, std::vector<Place>>;
  using RenameMap = std::unordered_map<std::string, std::pair<PathTemplate, PathTemplate>>;
  struct KnownModule {
    PathTemplate path;
    ModuleKind kind;
    std::string class_name;
    std::vector<std::string> dims;           // formulas, where the table has them
    const model::ExpertsRow* row = nullptr;  // whose block it stands in: routers, shared experts, dense layers
    bool dense_layers = false;               // only in layers without experts
  };
  using KnownMap = std::unordered_map<std::string, std::vector<KnownModule>>;

  std::shared_ptr<const model::Table> table;  // keeps the forms alive
  std::shared_ptr<const model::Family> family;
  std::shared_ptr<const model::DenseFamily> dense;
  PlaceMap places;
  RenameMap to_v5, to_v4;
  KnownMap known_v4, known_v5;
  std::vector<std::unordered_map<std::int64_t, std::size_t>> layers;  // per kind: layer -> place in Model::experts

  const KnownMap& known(Generation g) const { return g == Generation::v4 ? known_v4 : known_v5; }
  const KnownModule* find_known(Generation g, std::string_view module) const;
};

namespace model {

// Everything of the index that does not depend on the layers.
std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const Family> family);
std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const DenseFamily> dense);

// A path relative to the experts module: "", "fc1", "../input_linear".
std::string resolve_module(std::string_view experts, std::string_view relative);

struct PlaceMatch {
  const Model::Index::Place* place = nullptr;
  PathNumber layer, expert;
};
// The place a path fits, whichever layer it names. nullopt: none.
std::optional<PlaceMatch> find_place(const Model::Index::PlaceMap& places, std::string_view path);

}  // namespace model
}  // namespace peft
