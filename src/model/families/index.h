// The index of a family: its path templates by their keys. Model::locate(), rename(), kind() and has() use it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/families/table.h"
#include "model/path.h"
#include "peft/model.h"

namespace peft {

struct Model::Index {
  using PathTemplate = model::PathTemplate;
  // A place of experts: the module of all of them, the module of one projection of one expert, or the module of a
  // split parameter.
  struct Place {
    PathTemplate path;
    std::size_t kind;
    Projection projection = Projection::none;
    const ExpertsForm::Fused* fused = nullptr;
    std::optional<Generation> fused_generation;
    Generation spelling;  // the generation that has this name
  };
  using PlaceMap = std::unordered_map<std::string, std::vector<Place>>;
  using RenameMap = std::unordered_map<std::string, std::pair<PathTemplate, PathTemplate>>;
  struct KnownModule {
    PathTemplate path;
    ModuleKind kind;
    std::string class_name;
    std::vector<std::string> dims;           // formulas, where the table has them
    const model::ExpertsRow* row = nullptr;  // the row whose block it is in: routers, shared experts, dense layers
    bool dense_layers = false;               // only in layers without experts
  };
  using KnownMap = std::unordered_map<std::string, std::vector<KnownModule>>;

  std::shared_ptr<const model::Table> table;  // keeps the forms alive
  std::shared_ptr<const model::Family> family;
  std::shared_ptr<const model::DenseFamily> dense;
  PlaceMap places;
  PlaceMap foreign_places;  // single experts as other programs name them: in adapters alone, never in models
  struct ForeignName {
    std::string program;
    std::size_t kind;
    Projection projection;
    PathTemplate path;
  };
  std::vector<ForeignName> foreign_names;
  RenameMap to_v5, to_v4;
  KnownMap known_v4, known_v5;
  std::vector<std::unordered_map<std::int64_t, std::size_t>> layers;  // per kind: layer -> place in Model::experts

  const KnownMap& known(Generation g) const { return g == Generation::v4 ? known_v4 : known_v5; }
  const KnownModule* find_known(Generation g, std::string_view module) const;
};

namespace model {

// The index without `layers`.
std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const Family> family);
std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const DenseFamily> dense);

// A path relative to the experts module: "", "fc1", "../input_linear".
std::string resolve_module(std::string_view experts, std::string_view relative);

struct PlaceMatch {
  const Model::Index::Place* place = nullptr;
  PathNumber layer, expert;
};
// The place that a path fits, in any layer; nullopt: none.
std::optional<PlaceMatch> find_place(const Model::Index::PlaceMap& places, std::string_view path);

// The same for a path of an adapter: names of other programs count too.
std::optional<PlaceMatch> find_adapter_place(const Model::Index& index, std::string_view path);

// The module of one projection of one expert, as transformers names it ("") or as a program does that has names of its
// own; "" where there is none.
std::string expert_module(const Model& model, const Experts& experts, std::string_view program, std::int64_t expert,
                          Projection projection);

// Further names of a module, by the rows "same_prefixes" of the table. A checkpoint of the bare model lacks the prefix
// of a model with a head ("bert."), and composites have their parts in another place since transformers 4.52. The
// loader of transformers accepts either name. A family with a row of experts states its own names and has no others.
std::vector<std::string> other_names(const Model& model, std::string_view module);

}  // namespace model
}  // namespace peft
