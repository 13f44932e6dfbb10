#include "model/families/index.h"

#include <algorithm>

namespace peft {

using model::DenseFamily;
using model::ExpertsRow;
using model::Family;
using model::GenerationRow;
using model::ParameterRow;
using model::PathTemplate;

const Model::Index::KnownModule* Model::Index::find_known(Generation g, std::string_view module) const {
  const model::PathKey key = model::path_key(module);
  const auto found = known(g).find(key.key);
  if (found == known(g).end()) return nullptr;
  for (const KnownModule& candidate : found->second) {
    if (candidate.path.match(key.numbers)) return &candidate;
  }
  return nullptr;
}

namespace model {
namespace {

using Index = Model::Index;

void add_place(Index& index, Index::Place place) {
  auto& list = index.places[place.path.key()];
  const bool known = std::any_of(list.begin(), list.end(),
                                 [&](const Index::Place& other) { return other.path.text() == place.path.text(); });
  if (!known) list.push_back(std::move(place));
}

void add_places(Index& index, const Kind& kind, std::size_t number, Generation spelling) {
  const std::string& path = kind.path(spelling);
  if (path.empty()) return;
  for (const ExpertsForm::PerExpert& module : kind.form.per_expert) {
    const std::string name = path + "." + kind.form.expert_name + "." + module.name;
    add_place(index, {PathTemplate(name), number, module.projection, nullptr, std::nullopt, spelling});
  }
  for (const ExpertsForm::Fused& parameter : kind.form.fused(spelling)) {
    if (parameter.module.empty()) continue;
    const std::string module = resolve_module(path, parameter.module);
    add_place(index, {PathTemplate(module), number, Projection::none, &parameter, spelling, spelling});
  }
  add_place(index, {PathTemplate(path), number, Projection::none, nullptr, std::nullopt, spelling});
}

// Names of other programs for the first kind of experts of the family.
void add_foreign_names(Index& index, const Family& family) {
  const auto rows = index.table->spellings.find(family.model_type);
  if (rows == index.table->spellings.end() || family.kinds.empty()) return;
  for (const Spelling& row : rows->second) {
    for (const ExpertsForm::PerExpert& module : row.modules) {
      const PathTemplate path(row.experts + ".{expert}." + module.name);
      index.foreign_names.push_back({row.program, 0, module.projection, path});
      index.foreign_places[path.key()].push_back({path, 0, module.projection, nullptr, std::nullopt, Generation::v4});
    }
  }
}

void add_known(Index::KnownMap& map, Index::KnownModule module) {
  auto& list = map[module.path.key()];
  const auto same = std::find_if(list.begin(), list.end(), [&](const Index::KnownModule& other) {
    return other.path.text() == module.path.text();
  });
  if (same == list.end()) {
    list.push_back(std::move(module));
  } else if (same->dims.empty()) {  // a router or shared expert that `linears` lists without a shape
    same->dims = std::move(module.dims);
    same->row = module.row;
    same->class_name = std::move(module.class_name);
  }
}

void add_known_modules(Index::KnownMap& map, const GenerationRow& generation) {
  for (const std::string& path : generation.linears) {
    add_known(map, {PathTemplate(path), ModuleKind::linear, "Linear", {}});
  }
  for (const ExpertsRow& row : generation.experts) {
    for (const auto* list : {&row.router, &row.shared}) {
      for (const ParameterRow& parameter : *list) {
        if (leaf(parameter.name) != "weight" || parent(parameter.name).empty()) continue;
        const std::string path = row.block + "." + std::string(parent(parameter.name));
        const ModuleKind kind = parameter.owner == "Linear" ? ModuleKind::linear : ModuleKind::other;
        add_known(map, {PathTemplate(path), kind, parameter.owner, parameter.dims, &row});
      }
    }
  }
}

void add_dense_layers(Index& index, const Family& family) {
  const auto found = index.table->dense_layers.find(family.model_type);
  if (found == index.table->dense_layers.end()) return;
  for (const Generation g : {Generation::v4, Generation::v5}) {
    if (!family.generation(g)) continue;
    for (const ExpertsRow& row : family.generation(g)->experts) {
      if (row.moe_layers == std::vector<std::string>{"all"}) continue;  // the talker of qwen3_omni_moe
      for (const DenseLinear& linear : found->second)
        add_known(
            g == Generation::v4 ? index.known_v4 : index.known_v5,
            {PathTemplate(row.block + "." + linear.path), linear.kind, linear.class_name, linear.dims, &row, true});
    }
  }
}

void add_known_modules(Index::KnownMap& map, const std::optional<std::vector<DenseLinear>>& linears) {
  if (!linears) return;
  for (const DenseLinear& linear : *linears) {
    add_known(map, {PathTemplate(linear.path), linear.kind, linear.class_name, linear.dims});
  }
}

}  // namespace

std::string resolve_module(std::string_view experts, std::string_view relative) {
  if (relative.empty()) return std::string(experts);
  if (relative.starts_with("../")) return std::string(parent(experts)) + "." + std::string(relative.substr(3));
  return std::string(experts) + "." + std::string(relative);
}

std::optional<PlaceMatch> find_place(const Model::Index::PlaceMap& places, std::string_view path) {
  const PathKey key = path_key(path);
  const auto found = places.find(key.key);
  if (found == places.end()) return std::nullopt;
  for (const Index::Place& place : found->second) {
    if (const auto match = place.path.match(key.numbers)) return PlaceMatch{&place, match->layer, match->expert};
  }
  return std::nullopt;
}

std::optional<PlaceMatch> find_adapter_place(const Model::Index& index, std::string_view path) {
  const auto match = find_place(index.places, path);
  return match ? match : find_place(index.foreign_places, path);
}

std::string expert_module(const Model& model, const Experts& experts, std::string_view program, std::int64_t expert,
                          Projection projection) {
  if (program.empty()) return experts.per_expert_module(expert, projection);
  if (!model.index || !model.index->family) return {};
  for (const Index::ForeignName& row : model.index->foreign_names) {
    const bool own = &model.index->family->kinds[row.kind].form == experts.form;
    if (own && row.program == program && row.projection == projection) return row.path.fill(experts.layer, expert);
  }
  return {};
}

std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const Family> family) {
  auto index = std::make_shared<Index>();
  index->table = std::move(table);
  index->family = std::move(family);
  const Family& row = *index->family;
  index->layers.resize(row.kinds.size());
  for (std::size_t i = 0; i < row.kinds.size(); ++i) {
    add_places(*index, row.kinds[i], i, Generation::v4);
    add_places(*index, row.kinds[i], i, Generation::v5);
  }
  add_foreign_names(*index, row);
  for (const Renaming& renaming : row.renamings) {
    const PathTemplate v4(renaming.v4), v5(renaming.v5);
    index->to_v5.try_emplace(v4.key(), v4, v5);
    index->to_v4.try_emplace(v5.key(), v5, v4);
  }
  if (row.v4) add_known_modules(index->known_v4, *row.v4);
  if (row.v5) add_known_modules(index->known_v5, *row.v5);
  add_dense_layers(*index, row);
  return index;
}

std::shared_ptr<Model::Index> make_index(std::shared_ptr<const Table> table, std::shared_ptr<const DenseFamily> dense) {
  auto index = std::make_shared<Index>();
  index->table = std::move(table);
  index->dense = std::move(dense);
  add_known_modules(index->known_v4, index->dense->v4);
  add_known_modules(index->known_v5, index->dense->v5);
  return index;
}

std::vector<std::string> other_names(const Model& model, std::string_view module) {
  std::vector<std::string> names;
  if (!model.index || !model.index->table || model.index->family) return names;
  const auto add = [&](const std::string& from, const std::string& to) {
    if (module.starts_with(from)) names.push_back(to + std::string(module.substr(from.size())));
  };
  for (const auto& [one, other] : model.index->table->same_prefixes) {
    add(one, other);
    add(other, one);
  }
  return names;
}

}  // namespace model
}  // namespace peft
