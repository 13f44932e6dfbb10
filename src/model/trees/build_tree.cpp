#include "model/trees/build_tree.h"

#include <set>

#include "model/families/index.h"
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
    const auto& rows = kind.rows(g);
    return rows.empty() ? nullptr : rows.front();
  }
  return nullptr;
}

void append_fused(ModuleTree& tree, const Experts& experts, const ExpertsRow& row, Generation g) {
  std::string previous;
  for (const ExpertsForm::Fused& parameter : experts.form->fused(g)) {
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

// The module in the other generation. A router that is a Linear there owns its weight here, or the other way round.
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
    // Transformers 4 does not have the type. Its per-expert modules are those that checkpoints name.
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

void append_module(ModuleTree& tree, Module module) {
  if (module.kind == ModuleKind::other && !module.weight.empty()) {
    tree.parameters.push_back({module.name, "weight", module.weight});
  }
  tree.modules.push_back(std::move(module));
}

void finish_tree(ModuleTree& tree) {
  tree.input_embedding.clear();
  tree.output_embedding.clear();
  for (const Module& module : tree.modules) {
    const bool found = !tree.input_embedding.empty() || module.kind != ModuleKind::embedding;
    if (!found && is_token_embedding_name(module.name)) tree.input_embedding = module.name;
    if (is_output_name(module.name)) tree.output_embedding = module.name;
  }
  tree.build_lookup();
}

}  // namespace peft::model
