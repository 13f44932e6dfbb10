#include "model/describe/draft.h"

#include <algorithm>
#include <cctype>

#include "base/text.h"
#include "model/families/families.h"
#include "model/path.h"
#include "model/trees/class_trees.h"
#include "peft/error.h"

namespace peft::model {
namespace {

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

// A size from the config by the rows of either generation; 0 when the config does not say it.
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
  at(draft.facts.file())
      .fail(ErrorCode::MD_FORM, {.problem = "more experts than any model has",
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
    const std::vector<std::string> near = near_types(*table, model_type);
    at(file, "model_type")
        .fail(ErrorCode::MD_FAMILY,
              {.problem = "the family table does not know this model type",
               .expected = near.empty() ? "one of those `peft families` lists" : "one like " + list_text(near),
               .got = model_type.empty() ? "none" : model_type,
               .hint = "add it with --families FILE (docs/add_a_family.md)"});
  }
  draft.model.model_type = draft.model.default_targets_type = model_type;
  if (draft.family() != nullptr) draft.model.peft_config = draft.family()->peft_config;
  return draft;
}

bool Draft::exists(Generation g) const {
  if (family() != nullptr) return family()->generation(g).has_value();
  return !index->dense || index->dense->generation(g).has_value();
}

bool is_known_type(const Table& table, const std::string& type) {
  return table.families.contains(type) || table.dense.contains(type) || table.part_of.contains(type);
}

Draft draft_for_base(const std::shared_ptr<const Table>& table, const std::string& stated,
                     const DescribeOptions& options) {
  if (options.family.empty() || stated == options.family) return draft_for(table, stated, options.base);
  if (!is_known_type(*table, stated)) return draft_for(table, options.family, options.base);
  at(options.base, "model_type")
      .fail(ErrorCode::MD_FAMILY, {.problem = "the base is of another family than --family says",
                                   .expected = options.family,
                                   .got = stated,
                                   .hint = "leave --family out"});
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

void finish(Draft& draft, const DescribeOptions& options) {
  Model& result = draft.model;
  if (options.num_experts > 0) {
    for (Experts& experts : result.experts) {
      if (experts.num_experts > 0 && experts.num_experts != options.num_experts) {
        at(options.base)
            .fail(ErrorCode::USAGE, {.problem = "--num-experts is not what the base says",
                                     .expected = std::to_string(experts.num_experts),
                                     .got = std::to_string(options.num_experts)});
      }
      experts.num_experts = options.num_experts;
    }
  }
  result.vocab_size = draft.facts.vocab_size();
  result.num_heads = draft.facts.num_heads(), result.num_kv_heads = draft.facts.num_kv_heads();
  const auto& tree = result.v5 ? result.v5 : result.v4;
  if (result.vocab_size == 0 && tree && !tree->input_embedding.empty()) {
    const Module* embedding = tree->find(tree->input_embedding);
    if (embedding->weight.size() == 2) result.vocab_size = embedding->weight[0];
  }
  result.tie_word_embeddings = draft.facts.tie_word_embeddings().value_or(result.tie_word_embeddings);
  const auto output = own_output(draft);
  // A class without an output embedding has nothing to tie, even where its config says that it ties.
  if (output == "") result.tie_word_embeddings = false;
  for (auto* known : {&result.v4, &result.v5}) {
    if (output && *known && (*known)->output_embedding.empty() && (*known)->find(*output))
      (*known)->output_embedding = *output;
  }
  result.fp8_cell = draft.facts.fp8_cell().value_or(result.fp8_cell);
}

}  // namespace peft::model
