// Which paths are called differently in the two generations, read off the rows of both.
#include <algorithm>
#include <set>

#include "model/families.h"
#include "model/path.h"

namespace peft::model {
namespace {

// Modules below a block, by the shape of their weight, in order. Experts themselves are not among them.
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

void add(Family& family, std::string v4, std::string v5) {
  if (v4 == v5) return;
  const bool known = std::any_of(family.renamings.begin(), family.renamings.end(),
                                 [&](const Renaming& r) { return r.v4 == v4 || r.v5 == v5; });
  if (!known) family.renamings.push_back({std::move(v4), std::move(v5)});
}

// The block, and whatever stands before it. Blocks of different depth (a checkpoint without a block) say nothing
// about their siblings.
void rename_blocks(Family& family, const Kind& kind) {
  if (up_to_layer(kind.v4_block) != kind.v4_block && up_to_layer(kind.v5_block) != kind.v5_block) {
    add(family, kind.v4_block, kind.v5_block);
  }
  add(family, up_to_layer(kind.v4_block), up_to_layer(kind.v5_block));
}

// Routers and shared experts of two classes: equal names belong together, the rest by the shape of the weight.
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
    add(family, kind.v4_block + "." + module, kind.v5_block + "." + match->first);
    new_modules.erase(match);
  }
}

// Names on disk say it outright. Several disk names for one module (fused there) are no renaming.
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
    if (targets.count(pair.v5) == 1) add(family, std::move(pair.v4), std::move(pair.v5));
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
