#include "model/builder.h"

#include <algorithm>
#include <cctype>

#include "model/path.h"
#include "model/tree_table.h"
#include "peft/error.h"

namespace peft::model {
namespace {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// The names in a formula: "kv_channels*num_key_value_heads" has two, "2I" has I.
std::vector<std::string> names_in(std::string_view formula) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  std::vector<std::string> names;
  for (std::size_t at = 0; at < formula.size(); ++at) {
    if (std::isdigit(static_cast<unsigned char>(formula[at])) || !is_word(formula[at])) continue;
    std::size_t end = at;
    while (end < formula.size() && is_word(formula[end])) ++end;
    names.emplace_back(formula.substr(at, end - at));
    at = end;
  }
  return names;
}

// The formulas of what gate or up reads, and of what down reads.
struct Sizes {
  std::string hidden, intermediate;
};

void take_sizes(const std::vector<ExpertsForm::Fused>& list, Sizes& sizes) {
  for (const ExpertsForm::Fused& parameter : list) {
    if (parameter.projections.empty()) continue;
    std::string& size = parameter.projections.front() == Projection::down ? sizes.intermediate : sizes.hidden;
    if (size.empty()) size = parameter.dims[parameter.in_out ? 1 : 2];
  }
}

Sizes sizes_of(const Kind& kind) {
  Sizes sizes;
  take_sizes(kind.form.v5, sizes);
  take_sizes(kind.form.v4, sizes);
  for (const auto* rows : {&kind.v4, &kind.v5}) {
    if (rows->empty() || !rows->front()->form.modules) continue;
    for (const ParameterRow& linear : rows->front()->form.params) {
      const auto module = std::find_if(kind.form.per_expert.begin(), kind.form.per_expert.end(),
                                       [&](const auto& m) { return m.name == linear.name; });
      if (module == kind.form.per_expert.end()) continue;
      std::string& size = module->projection == Projection::down ? sizes.intermediate : sizes.hidden;
      if (size.empty()) size = linear.dims.at(1);
    }
  }
  if (sizes.hidden.empty()) sizes.hidden = "H";  // parameters that are no matrix per expert (dbrx)
  if (sizes.intermediate.empty()) sizes.intermediate = "I";
  return sizes;
}

// A size from the config by the rows of either generation; 0 when it does not say.
std::int64_t size_from_config(const Draft& draft, const Kind& kind, const std::string& formula) {
  for (const auto* rows : {&kind.v5, &kind.v4}) {
    if (rows->empty() || formula.empty()) continue;
    const auto size = evaluate_integer(formula, draft.facts.names(*rows->front()));
    if (size && *size > 0) return *size;
  }
  return 0;
}

void check_num_experts(const Draft& draft, std::int64_t number) {
  if (number <= kMaxExperts) return;
  throw Error(ErrorCode::MD_FORM, {.file = draft.facts.file(),
                                   .problem = "more experts than any model has",
                                   .expected = "at most " + std::to_string(kMaxExperts),
                                   .got = std::to_string(number)});
}

}  // namespace

Draft draft_for(std::shared_ptr<const Table> table, const std::string& model_type, const std::string& file) {
  Draft draft;
  std::string type = model_type;
  const auto composite = table->part_of.find(type);
  if (!table->families.contains(type) && !table->dense.contains(type) && composite != table->part_of.end()) {
    draft.model.notes.push_back("\"" + type + "\" is a part of \"" + composite->second +
                                "\"; its modules are named as there");
    type = composite->second;
  }
  if (const auto family = table->families.find(type); family != table->families.end()) {
    draft.index = make_index(table, family->second);
    draft.model.base_is_v4_only = !family->second->v5;
    draft.model.base_is_v5_only = !family->second->v4;
  } else if (const auto dense = table->dense.find(type); dense != table->dense.end()) {
    draft.index = make_index(table, dense->second);
    draft.model.base_is_v5_only = !dense->second->v4;
  } else {
    const std::vector<std::string> near = near_names(*table, model_type);
    throw Error(ErrorCode::MD_FAMILY,
                {.file = file,
                 .tensor = "model_type",
                 .problem = "the family table does not know this model type",
                 .expected = near.empty() ? "one of those `peft families` lists" : "one like " + joined(near),
                 .got = model_type.empty() ? "none" : model_type,
                 .hint = "add it with --families FILE (docs/add_a_family.md)"});
  }
  draft.model.model_type = draft.model.default_targets_type = model_type;
  if (draft.family() != nullptr) draft.model.peft_config = draft.family()->peft_config;
  return draft;
}

Draft draft_for_trees(std::shared_ptr<const Table> table, const std::string& model_type) {
  auto dense = std::make_shared<DenseFamily>();
  dense->model_type = model_type;
  for (const ClassTrees& trees : find_trees(model_type)->classes) {
    if (trees.v4) dense->v4.emplace();
    if (trees.v5) dense->v5.emplace();
  }
  Draft draft;
  draft.model.base_is_v5_only = !dense->v4;
  draft.index = make_index(std::move(table), std::move(dense));
  draft.model.model_type = draft.model.default_targets_type = model_type;
  return draft;
}

std::optional<std::string> own_output(const Draft& draft) {
  const std::string& type = draft.model.model_type;
  const std::string architecture = draft.facts.architecture();
  if (architecture.empty() || draft.index->table->replaced.contains(type)) return std::nullopt;
  return output_embedding_of(type, architecture);
}

Draft draft_without_row(std::shared_ptr<const Table> table, const std::string& model_type) {
  Draft draft;
  draft.index = std::make_shared<Model::Index>();
  draft.index->table = std::move(table);
  draft.model.model_type = draft.model.default_targets_type = model_type;
  return draft;
}

Experts& add_experts(Draft& draft, std::size_t kind_number, std::int64_t layer) {
  const Kind& kind = draft.family()->kinds[kind_number];
  const Sizes sizes = sizes_of(kind);
  Experts experts;
  experts.form = &kind.form;
  experts.layer = layer;
  if (!kind.v4_path.empty()) experts.v4_module = PathTemplate(kind.v4_path).fill(layer);
  if (!kind.v5_path.empty()) experts.v5_module = PathTemplate(kind.v5_path).fill(layer);
  const bool fixed =
      !kind.form.v5.empty() && kind.form.v5.front().dims.front().find_first_not_of("0123456789") == std::string::npos;
  experts.num_experts = size_from_config(draft, kind, fixed ? kind.form.v5.front().dims.front() : "E");
  experts.hidden = size_from_config(draft, kind, sizes.hidden);
  experts.intermediate = size_from_config(draft, kind, sizes.intermediate);
  check_num_experts(draft, experts.num_experts);
  for (const auto* list : {&kind.form.v4, &kind.form.v5}) {
    for (const ExpertsForm::Fused& parameter : *list) {
      for (const std::string& dim : parameter.dims) {
        for (const std::string& name : names_in(dim)) {
          if (name == "E" || name == "H" || name == "I") continue;
          const std::int64_t size = size_from_config(draft, kind, name);
          if (size > 0) experts.other_dims.emplace_back(name, size);
        }
      }
    }
  }
  draft.index->layers[kind_number].emplace(layer, draft.model.experts.size());
  draft.model.experts.push_back(std::move(experts));
  return draft.model.experts.back();
}

}  // namespace peft::model
