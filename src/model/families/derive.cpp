#include "model/families/derive.h"

#include <algorithm>
#include <set>

#include "model/path.h"

namespace peft::model {
// ---- Kinds of experts

namespace {

// The rows of one kind in one generation. A kind with several rows is split over sibling modules.
struct Group {
  std::vector<const ExpertsRow*> rows;
  std::string path, block;
};

std::vector<Group> group_rows(const std::optional<GenerationRow>& generation) {
  std::vector<Group> groups;
  if (!generation) return groups;
  for (const ExpertsRow& row : generation->experts) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.block == row.block; });
    if (same != groups.end()) {
      same->rows.push_back(&row);
    } else {
      groups.push_back({{&row}, row.path, row.block});
    }
  }
  for (Group& group : groups) {
    if (group.rows.size() == 1) continue;
    const bool own_module =
        leaf(group.block) == "experts";  // aria: mlp.experts.fc1; granite: block_sparse_moe.input_linear
    group.path = own_module ? group.block : group.block + ".experts";
    if (own_module) group.block = std::string(parent(group.block));
  }
  return groups;
}

bool mentions_intermediate(const std::string& dim) { return dim == "I" || dim == "2I"; }

Projection named_projection(std::string_view name) {
  if (name == "gate_proj") return Projection::gate;
  if (name == "up_proj") return Projection::up;
  if (name == "down_proj") return Projection::down;
  return Projection::none;
}

// What a parameter holds. Only [E, d1, d2] is a matrix per expert. Parameters of
// other forms are carried along whole, and hold no projection.
std::vector<Projection> projections_of(const ExpertsRow& row, const ParameterRow& parameter, bool sibling_is_fused) {
  if (parameter.dims.size() != 3) return {};
  if (parameter.name == row.form.fused) return {Projection::gate, Projection::up};
  if (sibling_is_fused && row.form.fused.empty()) return {Projection::down};
  const Projection projection = named_projection(parameter.name);
  if (projection == Projection::none) return {};
  return {projection};
}

// Gate and up have the intermediate size as their output, down has it as its input: the place of I among the
// dimensions tells the orientation.
bool stored_in_out(const ParameterRow& parameter, const std::vector<Projection>& projections) {
  if (projections.empty()) return false;
  const bool down = projections.front() == Projection::down;
  return mentions_intermediate(parameter.dims[down ? 1 : 2]);
}

std::string relative_module(std::string_view module, std::string_view experts) {
  if (module == experts) return {};
  if (is_below(module, experts)) return std::string(module.substr(experts.size() + 1));
  return "../" + std::string(module.substr(parent(experts).size() + 1));
}

std::vector<ExpertsForm::Fused> fused_parameters(const Group& group) {
  const bool some_fused =
      std::any_of(group.rows.begin(), group.rows.end(), [](const ExpertsRow* row) { return !row->form.fused.empty(); });
  std::vector<ExpertsForm::Fused> result;
  for (const ExpertsRow* row : group.rows) {
    if (row->form.modules) continue;
    for (const ParameterRow& parameter : row->form.params) {
      ExpertsForm::Fused fused;
      fused.module = relative_module(row->path, group.path);
      fused.name = parameter.name;
      fused.projections = projections_of(*row, parameter, some_fused && group.rows.size() > 1);
      fused.in_out = stored_in_out(parameter, fused.projections);
      fused.interleaved = row->form.interleaved && fused.projections.size() == 2;
      fused.is_transposed = row->form.is_transposed;
      fused.dims = parameter.dims;
      result.push_back(std::move(fused));
    }
  }
  return result;
}

void add_per_expert(ExpertsForm& form, Projection projection, std::string name) {
  const auto place = std::find_if(form.per_expert.begin(), form.per_expert.end(),
                                  [&](const auto& other) { return other.projection > projection; });
  form.per_expert.insert(place, {projection, std::move(name)});
}

bool per_expert_from_modules(const Group& group, ExpertsForm& form) {
  if (group.rows.size() != 1 || !group.rows[0]->form.modules) return false;
  const FormRow& row = group.rows[0]->form;
  form.expert_name = row.expert_name;
  for (const ParameterRow& linear : row.params) {
    const auto role = row.roles.find(linear.name);
    const std::string& name = role == row.roles.end() ? linear.name : role->second;
    add_per_expert(form,
                   name == "gate" ? Projection::gate
                   : name == "up" ? Projection::up
                                  : Projection::down,
                   linear.name);
  }
  return true;
}

// "model.layers.{layer}.mlp.experts.{expert}.w1.weight" cut at the expert; nullopt for other names.
struct DiskName {
  std::string experts, projection, memory;  // memory: the parameter's own name
};
std::optional<DiskName> disk_name(const std::pair<std::string, std::string>& pair) {
  constexpr std::string_view kExpert = ".{expert}.", kWeight = ".weight";
  const std::string& disk = pair.first;
  const std::size_t at = disk.find(kExpert);
  if (at == std::string::npos || !disk.ends_with(kWeight)) return std::nullopt;
  const std::size_t start = at + kExpert.size();
  return DiskName{disk.substr(0, at), disk.substr(start, disk.size() - kWeight.size() - start),
                  std::string(leaf(pair.second))};
}

// "mlp.experts.*.w1.weight", "\\.experts.*.w1.weight" -> "w1"
std::string source_projection(std::string pattern) {
  pattern = replace_all(std::move(pattern), "\\", "");
  if (pattern.ends_with(".weight")) pattern.resize(pattern.size() - 7);
  return std::string(leaf(pattern));
}

// Conversions list the sources of a fused parameter in its own order: gate first.
Projection projection_on_disk(const DiskName& name, const ExpertsForm& form, const std::vector<Json>& conversions) {
  for (const ExpertsForm::Fused& fused : form.v5) {
    if (fused.name == name.memory && fused.projections.size() == 1) return fused.projections[0];
  }
  for (const Json& conversion : conversions) {
    for (const Json& step : conversion) {
      const Json& to = step.at("to");
      const Json& from = step.at("from");
      if (!to.is_string() || !from.is_array() || from.size() != 2) continue;
      if (leaf(to.get<std::string>()) != name.memory) continue;
      if (source_projection(from[0].get<std::string>()) == name.projection) return Projection::gate;
      if (source_projection(from[1].get<std::string>()) == name.projection) return Projection::up;
    }
  }
  return Projection::none;
}

// Checkpoints that name experts one by one although no class has such modules.
void per_expert_from_disk(const Group& group, const std::vector<Json>& conversions, Kind& kind) {
  for (const ExpertsRow* row : group.rows) {
    for (const auto& pair : row->disk) {
      const auto name = disk_name(pair);
      if (!name) continue;
      const Projection projection = projection_on_disk(*name, kind.form, conversions);
      if (projection == Projection::none) continue;
      add_per_expert(kind.form, projection, name->projection);
      kind.v4_path = name->experts;
      kind.v4_block = std::string(parent(name->experts));
      kind.form.per_expert_on_disk_only = true;
    }
  }
}

}  // namespace

void derive_kinds(Family& family, const std::vector<Json>& conversions) {
  const std::vector<Group> v4 = group_rows(family.v4), v5 = group_rows(family.v5);
  const Group none;
  for (std::size_t i = 0; i < std::max(v4.size(), v5.size()); ++i) {
    const Group& old_group = i < v4.size() ? v4[i] : none;
    const Group& new_group = i < v5.size() ? v5[i] : none;
    Kind kind;
    kind.v4 = old_group.rows;
    kind.v5 = new_group.rows;
    kind.v4_path = old_group.path;
    kind.v5_path = new_group.path;
    kind.v4_block = old_group.block;
    kind.v5_block = new_group.block;
    kind.form.v4 = fused_parameters(old_group);
    kind.form.v5 = fused_parameters(new_group);
    if (!per_expert_from_modules(old_group, kind.form) && !per_expert_from_modules(new_group, kind.form) &&
        kind.v4_path.empty()) {
      per_expert_from_disk(new_group, conversions, kind);
    }
    family.kinds.push_back(std::move(kind));
  }
}

// ---- Renamings between the generations

namespace {

// The modules below a block and the shapes of their weights, in order, without the experts.
std::vector<std::pair<std::string, std::vector<std::string>>> modules_of(const std::vector<const ExpertsRow*>& rows,
                                                                         const std::string& block) {
  std::vector<std::pair<std::string, std::vector<std::string>>> modules;
  const ExpertsRow& row = *rows.front();
  for (const auto* list : {&row.router, &row.shared}) {
    for (const ParameterRow& parameter : *list) {
      const std::string module = row.block + "." + std::string(parent(parameter.name));
      const bool is_experts =
          std::any_of(rows.begin(), rows.end(), [&](const ExpertsRow* r) { return r->path == module; });
      if (parent(parameter.name).empty() || parameter.dims.size() != 2 || is_experts) continue;
      if (!is_below(module, block)) continue;
      modules.emplace_back(module.substr(block.size() + 1), parameter.dims);
    }
  }
  return modules;
}

void add_renaming(Family& family, std::string v4, std::string v5) {
  if (v4 == v5) return;
  const bool known = std::any_of(family.renamings.begin(), family.renamings.end(),
                                 [&](const Renaming& r) { return r.v4 == v4 || r.v5 == v5; });
  if (!known) family.renamings.push_back({std::move(v4), std::move(v5)});
}

// The block, and the path before it. Blocks of different depth (a checkpoint without a block) tell nothing about their
// siblings.
void rename_blocks(Family& family, const Kind& kind) {
  if (up_to_layer(kind.v4_block) != kind.v4_block && up_to_layer(kind.v5_block) != kind.v5_block) {
    add_renaming(family, kind.v4_block, kind.v5_block);
  }
  add_renaming(family, up_to_layer(kind.v4_block), up_to_layer(kind.v5_block));
}

// Routers and shared experts of two classes. Equal names belong together; the rest is paired by the shapes of the
// weights.
void rename_by_shape(Family& family, const Kind& kind) {
  auto old_modules = modules_of(kind.v4, kind.v4_block);
  auto new_modules = modules_of(kind.v5, kind.v5_block);
  std::erase_if(old_modules, [&](const auto& old_module) {
    return std::any_of(new_modules.begin(), new_modules.end(),
                       [&](const auto& n) { return n.first == old_module.first; });
  });
  const auto same_as_old = modules_of(kind.v4, kind.v4_block);
  std::erase_if(new_modules, [&](const auto& new_module) {
    return std::any_of(same_as_old.begin(), same_as_old.end(),
                       [&](const auto& o) { return o.first == new_module.first; });
  });
  for (const auto& [module, dims] : old_modules) {
    const auto match =
        std::find_if(new_modules.begin(), new_modules.end(), [&](const auto& n) { return n.second == dims; });
    if (match == new_modules.end()) continue;
    add_renaming(family, kind.v4_block + "." + module, kind.v5_block + "." + match->first);
    new_modules.erase(match);
  }
}

// The table states the names on disk. Several of them for one module mean that it is fused, which is no renaming.
void rename_by_disk(Family& family, const Kind& kind) {
  std::vector<Renaming> pairs;
  std::multiset<std::string> targets;
  for (const ExpertsRow* row : kind.v5) {
    for (const auto& [disk, memory] : row->disk) {
      if (disk.find("{expert}") != std::string::npos || leaf(disk) != "weight" || leaf(memory) != "weight") continue;
      pairs.push_back({std::string(parent(disk)), std::string(parent(memory))});
      targets.insert(pairs.back().v5);
    }
  }
  for (Renaming& pair : pairs) {
    if (targets.count(pair.v5) == 1) add_renaming(family, std::move(pair.v4), std::move(pair.v5));
  }
}

}  // namespace

void derive_renamings(Family& family) {
  for (const Kind& kind : family.kinds) {
    if (kind.v4_path.empty() || kind.v5_path.empty()) continue;
    if (kind.v4.empty()) {
      rename_by_disk(family, kind);
    } else {
      rename_by_shape(family, kind);
    }
    rename_blocks(family, kind);
  }
}

}  // namespace peft::model
