#include <set>

#include "model/builder.h"
#include "model/path.h"

namespace peft::model {
namespace {

std::vector<std::int64_t> per_expert_shape(const Experts& experts, Projection projection) {
  if (experts.hidden == 0 || experts.intermediate == 0) return {};
  if (projection == Projection::down) return {experts.hidden, experts.intermediate};
  return {experts.intermediate, experts.hidden};
}

const ExpertsRow* row_of(const Model& model, const Experts& experts, Generation g) {
  for (const Kind& kind : model.index->family->kinds) {
    if (&kind.form != experts.form) continue;
    const auto& rows = g == Generation::v4 ? kind.v4 : kind.v5;
    return rows.empty() ? nullptr : rows.front();
  }
  return nullptr;
}

void append_fused(ModuleTree& tree, const Experts& experts, const ExpertsRow& row, Generation g) {
  const auto& list = g == Generation::v4 ? experts.form->v4 : experts.form->v5;
  std::string previous;
  for (const ExpertsForm::Fused& parameter : list) {
    const std::string module = experts.fused_module(g, parameter);
    const std::vector<std::int64_t> shape = experts.fused_shape(parameter);
    if (module != previous) {
      const bool own_weight = parameter.name == "weight";
      tree.modules.push_back(
          {module, ModuleKind::other, row.class_name, own_weight ? shape : std::vector<std::int64_t>{}});
    }
    tree.parameters.push_back({module, parameter.name, shape});
    previous = module;
  }
}

// What a renamed module is over there: a Linear router becomes one that owns its weight, and back.
Module renamed(const Model& model, const Module& module, Generation from, Generation to) {
  Module result = module;
  result.name = model.rename(module.name, from, to);
  if (const auto* known = model.index->find_known(to, result.name)) {
    result.kind = known->kind;
    result.class_name = known->class_name;
  }
  return result;
}

void append_per_expert(ModuleTree& tree, const Experts& experts) {
  for (std::int64_t expert = 0; expert < experts.num_experts; ++expert) {
    for (const ExpertsForm::PerExpert& module : experts.form->per_expert) {
      tree.modules.push_back({experts.per_expert_module(expert, module.projection), ModuleKind::linear, "Linear",
                              per_expert_shape(experts, module.projection)});
    }
  }
}

}  // namespace

void append_experts(ModuleTree& tree, const Model& model, const Experts& experts, Generation g) {
  const ExpertsRow* row = row_of(model, experts, g);
  if (row == nullptr) {
    // A type that transformers 4 does not have: its per-expert modules are those that checkpoints name.
    if (g == Generation::v4 && experts.form->per_expert_on_disk_only) append_per_expert(tree, experts);
    return;
  }
  if (!row->form.modules) return append_fused(tree, experts, *row, g);
  for (std::int64_t expert = 0; expert < experts.num_experts; ++expert) {
    for (const ParameterRow& linear : row->form.params) {  // registration order, which is not gate, up, down
      for (const ExpertsForm::PerExpert& module : experts.form->per_expert) {
        if (module.name != linear.name) continue;
        tree.modules.push_back({experts.per_expert_module(expert, module.projection), ModuleKind::linear, "Linear",
                                per_expert_shape(experts, module.projection)});
      }
    }
  }
}

ModuleTree rename_tree(const Model& model, const ModuleTree& tree, Generation from, Generation to) {
  ModuleTree result;
  result.complete = tree.complete;
  std::set<const Experts*> done;
  std::set<std::string, std::less<>> owners;  // modules whose own parameters carry over, old names
  for (const Module& module : tree.modules) {
    if (const auto located = model.locate(module.name)) {
      if (done.insert(located->experts).second) append_experts(result, model, *located->experts, to);
      continue;
    }
    Module copy = renamed(model, module, from, to);
    if (module.kind == ModuleKind::other && copy.kind == ModuleKind::other) {
      owners.insert(module.name);
      result.modules.push_back(std::move(copy));
    } else {
      append_module(result, std::move(copy));
    }
  }
  for (const Parameter& parameter : tree.parameters) {
    if (!owners.contains(parameter.module)) continue;
    result.parameters.push_back({model.rename(parameter.module, from, to), parameter.name, parameter.shape});
  }
  finish_tree(result);
  return result;
}

}  // namespace peft::model
