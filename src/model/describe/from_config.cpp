#include "model/describe/from_config.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "model/describe/draft.h"
#include "model/describe/from_names.h"
#include "model/describe/shown_tree.h"
#include "model/path.h"
#include "model/trees/build_tree.h"
#include "model/trees/class_trees.h"
#include "peft/error.h"

namespace peft::model {
namespace {

constexpr std::string_view kLayer = "{layer}";

std::vector<const ExpertsRow*> rows_of(const Kind& kind) {
  std::vector<const ExpertsRow*> rows = kind.v5;
  rows.insert(rows.end(), kind.v4.begin(), kind.v4.end());
  return rows;
}

// "3..60", "1..31/2": the layers of the default model.
struct DefaultLayers {
  std::int64_t first = 0, step = 1;
};
DefaultLayers default_layers(const ExpertsRow& row) {
  DefaultLayers result;
  const std::string& text = row.default_layers;
  std::from_chars(text.data(), text.data() + text.size(), result.first);
  const std::size_t slash = text.find('/');
  if (slash != std::string::npos) std::from_chars(text.data() + slash + 1, text.data() + text.size(), result.step);
  result.step = std::max<std::int64_t>(result.step, 1);
  return result;
}

bool sparse_everywhere_by_default(const ExpertsRow& row) {
  const DefaultLayers layers = default_layers(row);
  return layers.first == 0 && layers.step == 1;
}

// Adds the experts and both trees that the config and the row give.
class ConfigDescriber {
 public:
  explicit ConfigDescriber(Draft& draft) : draft_(draft) {}

  void run() {
    draft_.model.index = draft_.index;
    make_known_trees();
    if (draft_.family() != nullptr && !use_known_experts()) find_experts();
    for (const Generation g : {Generation::v4, Generation::v5}) {
      if (draft_.exists(g) && has_rows(g) && !tree(g)) tree(g) = make_tree(g);
    }
    for (const std::string& part : undecided_) {
      draft_.model.notes.push_back("the config does not say which layers have " + part + "; it is left out");
    }
  }

 private:
  using Known = Model::Index::KnownModule;

  // A type that only the table of module trees has is described by that table alone.
  bool has_rows(Generation g) const { return draft_.family() != nullptr || !draft_.index->known(g).empty(); }

  std::optional<ModuleTree>& tree(Generation g) { return g == Generation::v4 ? draft_.model.v4 : draft_.model.v5; }

  // Takes the trees of the config's class from the table of module trees, which has them as they really are. Of a class
  // that has the body of another one the head is not known. What any other class has is found by the rows.
  void make_known_trees() {
    const std::string& type = draft_.model.model_type;
    const TypeTrees* known = draft_.index->table->replaced.contains(type) ? nullptr : find_trees(type);
    if (known == nullptr) return;
    const std::string stated = draft_.facts.architecture();
    const auto body = known->bodies.find(stated);
    const bool by_body = body != known->bodies.end();
    // The paths of a family's experts are those of its usual class.
    if (by_body && draft_.family() != nullptr && body->second.own != body->second.prefix) return;
    const ClassTrees* trees =
        stated.empty() ? &known->classes.front() : known->find(by_body ? body->second.of : stated);
    if (trees == nullptr) return;
    const bool exact = !by_body && (!stated.empty() || known->classes.size() == 1);
    for (const Generation g : {Generation::v4, Generation::v5}) {
      const auto& rows = trees->rows(g);
      if (!draft_.exists(g) || !rows) continue;
      ModuleTree made = tree_from_rows(*rows, draft_.facts.config(), draft_.facts.file());
      // The config lacks a key that the class needs. The rows then say what is certain.
      if (!made.complete) continue;
      if (by_body) made = body_of(made, body->second);
      made.complete = exact;
      tree(g) = std::move(made);
    }
  }

  bool use_known_experts() {
    const auto& known = tree(Generation::v5) ? tree(Generation::v5) : tree(Generation::v4);
    if (known) use_experts_of(draft_, *known);
    return known.has_value();
  }

  void find_experts() {
    std::vector<std::pair<std::int64_t, std::size_t>> places;
    for (std::size_t i = 0; i < draft_.family()->kinds.size(); ++i) {
      const Kind& kind = draft_.family()->kinds[i];
      const auto rows = rows_of(kind);
      const auto count = draft_.facts.num_layers(rows.front()->config, rows.front()->path);
      if (!count) {
        draft_.model.notes.push_back("the config does not say how many layers there are");
        continue;
      }
      bool assumed = false;
      for (std::int64_t layer = 0; layer < *count; ++layer) {
        const auto has = draft_.facts.has_experts(*draft_.index->table, rows, layer);
        assumed = assumed || !has;
        const DefaultLayers usual = default_layers(*rows.front());
        const bool usually = layer >= usual.first && (layer - usual.first) % usual.step == 0;
        if (has.value_or(usually)) places.emplace_back(layer, i);
      }
      if (assumed)
        draft_.model.notes.push_back(
            "the config does not say which layers have experts; taken as in the default model");
    }
    std::sort(places.begin(), places.end());
    std::int64_t modules = 0;
    for (const auto& [layer, kind] : places) {
      modules += 3 * add_experts(draft_, kind, layer).num_experts;
      if (modules <= kMaxModules) continue;
      at(draft_.facts.file())
          .fail(ErrorCode::MD_FORM, {.problem = "more experts than any model has",
                                     .expected = "at most " + std::to_string(kMaxModules) + " expert modules"});
    }
  }

  // The kind of experts in whose stack of layers a template lies.
  std::optional<std::size_t> stack_of(const std::string& path, Generation g) const {
    const std::string stack = up_to_layer(path);
    for (std::size_t i = 0; i < draft_.family()->kinds.size(); ++i) {
      const Kind& kind = draft_.family()->kinds[i];
      if (up_to_layer(kind.path(g)) == stack) return i;
    }
    return std::nullopt;
  }

  ModuleTree make_tree(Generation g) {
    ModuleTree tree;
    tree.complete = false;
    std::vector<const Known*> layered, single;
    for (const auto& [key, list] : draft_.index->known(g)) {
      for (const Known& known : list) (known.path.has_layer() ? layered : single).push_back(&known);
    }
    const auto by_name = [](const Known* a, const Known* b) { return a->path.text() < b->path.text(); };
    std::sort(layered.begin(), layered.end(), by_name);
    std::sort(single.begin(), single.end(), by_name);
    const std::int64_t layers = deepest(g);
    if (layers * static_cast<std::int64_t>(layered.size()) > kMaxModules) {
      at(draft_.facts.file()).fail(ErrorCode::MD_FORM, {.problem = "more modules than any model has"});
    }
    std::size_t next = 0;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      for (const Known* known : layered) {
        if (has_module(*known, layer, g)) append_module(tree, module_of(*known, layer));
      }
      for (; next < draft_.model.experts.size() && draft_.model.experts[next].layer == layer; ++next) {
        append_experts(tree, draft_.model, draft_.model.experts[next], g);
      }
    }
    for (const Known* known : single) append_module(tree, module_of(*known, 0));
    finish_tree(tree);
    return tree;
  }

  std::int64_t deepest(Generation g) const {
    std::int64_t layers = 0;
    if (draft_.family() == nullptr) return draft_.facts.num_layers("text_config", "").value_or(0);
    for (const Kind& kind : draft_.family()->kinds) {
      layers = std::max(layers, draft_.facts.num_layers(rows_of(kind).front()->config, kind.path(g)).value_or(0));
    }
    return layers;
  }

  // Whether the layer has the module for certain. A module that may be there is left out, with a note.
  bool has_module(const Known& known, std::int64_t layer, Generation g) {
    const std::string& path = known.path.text();
    const std::size_t behind = path.find(kLayer) + kLayer.size() + 1;
    if (behind >= path.size()) return false;  // altup_projections.{layer}: its numbers are not layers
    const std::string part = path.substr(behind);
    const ModuleRule* rule = rule_for(part);
    const auto answer = draft_.family() != nullptr ? in_family(known, layer, g, part)
                        : rule != nullptr          ? by_rule(*rule, nullptr, layer)
                                                   : std::optional(true);
    if (!answer) undecided_.insert(part);
    return answer.value_or(false);
  }

  std::optional<bool> in_family(const Known& known, std::int64_t layer, Generation g, const std::string& part) const {
    const auto stack = stack_of(known.path.text(), g);
    if (!stack) return std::nullopt;
    const Kind& kind = draft_.family()->kinds[*stack];
    const auto rows = rows_of(kind);
    if (layer >= draft_.facts.num_layers(rows.front()->config, rows.front()->path).value_or(0)) return false;
    const bool sparse = draft_.index->layers[*stack].contains(layer);
    if (known.dense_layers) return !sparse;
    if (known.row != nullptr) return sparse;  // a router or a shared expert
    if (const ModuleRule* rule = rule_for(part)) return by_rule(*rule, rows.front(), layer);
    const std::string& block = kind.block(g);
    if (up_to_layer(block) == block || !is_below(known.path.text(), block)) return true;
    if (sparse_everywhere_by_default(*rows.front())) return sparse;
    // The default model has dense layers too, and their MLP is directly in the block.
    return parent(known.path.text()) == block ? std::optional(!sparse) : std::nullopt;
  }

  const ModuleRule* rule_for(std::string_view part) const {
    const std::string& type =
        draft_.family() != nullptr ? draft_.family()->model_type : draft_.index->dense->model_type;
    for (const ModuleRule& rule : draft_.index->table->module_rules) {
      if ((rule.type == "*" || rule.type == type) && (part == rule.part || is_below(part, rule.part))) return &rule;
    }
    return nullptr;
  }

  std::optional<bool> by_rule(const ModuleRule& rule, const ExpertsRow* row, std::int64_t layer) const {
    ExpertsRow bare;
    bare.config = row != nullptr ? row->config : "text_config";
    for (const std::string& condition : rule.rules) {
      if (const auto holds = evaluate_condition(condition, draft_.facts.names(bare, layer))) return holds;
    }
    // The config lacks the keys. A part that is the only one of its kind is in every layer; of several kinds, such as
    // attention and something else, nobody can say which layer has which.
    return rule.type != "*" || several_mixers() ? std::nullopt : std::optional(true);
  }

  // Whether rules of all types are about more than one part of this type: attention here, something else there.
  bool several_mixers() const {
    std::set<std::string> parts;
    for (const auto& [key, list] : draft_.index->known_v5) {
      for (const Known& known : list) {
        const std::size_t at = known.path.text().find(kLayer);
        if (at == std::string::npos) continue;
        const std::string part = known.path.text().substr(std::min(at + kLayer.size() + 1, known.path.text().size()));
        for (const ModuleRule& rule : draft_.index->table->module_rules) {
          if (rule.type == "*" && rule.part.find('.') == std::string::npos && is_below(part, rule.part))
            parts.insert(rule.part);
        }
      }
    }
    return parts.size() > 1;
  }

  Module module_of(const Known& known, std::int64_t layer) const {
    Module module{known.path.fill(layer), known.kind, known.class_name, {}};
    const Lookup names = known.dense_layers     ? draft_.facts.dense_names(known.row->config)
                         : known.row != nullptr ? draft_.facts.names(*known.row)
                                                : draft_.facts.dense_names();
    for (const std::string& dim : known.dims) {
      const auto size = evaluate_integer(dim, names);
      if (!size || *size <= 0) return {module.name, module.kind, module.class_name, {}};
      module.weight.push_back(*size);
    }
    const bool output = known.dims.empty() && is_output_name(module.name);
    const auto hidden = evaluate_integer("H", draft_.facts.dense_names());
    if (output && hidden && draft_.facts.vocab_size() > 0) module.weight = {draft_.facts.vocab_size(), *hidden};
    return module;
  }

  Draft& draft_;
  std::set<std::string> undecided_;
};

// A dense type that has no row, but whose modules are known.
std::optional<Model> from_trees_alone(const std::shared_ptr<const Table>& table, const ConfigFacts& facts,
                                      const DescribeOptions& options) {
  if (find_trees(facts.model_type()) == nullptr) return std::nullopt;
  Draft draft = draft_for_trees(table, facts.model_type());
  draft.model.source = "config.json and module trees (" + facts.file() + ")";
  draft.facts = facts;
  ConfigDescriber(draft).run();
  if (!draft.model.v4 && !draft.model.v5) return std::nullopt;
  finish(draft, options);
  return std::move(draft.model);
}

// A config of a type that the table lacks. The names of the adapter serve, as they do without a base.
Model from_unknown_config(const std::shared_ptr<const Table>& table, ConfigFacts facts,
                          const DescribeOptions& options) {
  Draft draft = draft_without_row(table, facts.model_type());
  draft.model = model_from_names(table, options);
  draft.model.default_targets_type = facts.model_type();
  draft.model.source = "names alone, and config.json (" + facts.file() + ")";
  draft.model.notes.push_back("model type \"" + facts.model_type() +
                              "\" is not in the family table; its modules are taken from the adapter's names");
  draft.facts = std::move(facts);
  finish(draft, options);
  return std::move(draft.model);
}

}  // namespace

Model model_from_config(const std::shared_ptr<const Table>& table, ConfigFacts facts, const DescribeOptions& options) {
  const std::string type = facts.model_type();
  if (options.family.empty() && !type.empty() && !is_known_type(*table, type)) {
    if (auto known = from_trees_alone(table, facts, options)) return *std::move(known);
    return from_unknown_config(table, std::move(facts), options);
  }
  Draft draft = draft_for_base(table, facts.model_type(), options);
  draft.model.source = "config.json and family table (" + facts.file() + ")";
  draft.facts = std::move(facts);
  ConfigDescriber(draft).run();
  finish(draft, options);
  return std::move(draft.model);
}

}  // namespace peft::model
