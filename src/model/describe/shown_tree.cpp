#include "model/describe/shown_tree.h"

#include <algorithm>
#include <map>

#include "model/path.h"
#include "model/trees/build_tree.h"
#include "peft/error.h"

namespace peft::model {
namespace {

// What a tree shows of the experts of one layer.
struct Seen {
  std::int64_t num_experts = 0, hidden = 0, intermediate = 0;
};

class Observer {
 public:
  explicit Observer(Draft& draft) : draft_(draft) {}

  void look_at(const ModuleTree& shown) {
    for (const Module& module : shown.modules) look_at(module);
    for (const Parameter& parameter : shown.parameters) look_at(parameter);
  }

  // Whether the names and shapes can be those of the generation. Both can be meant where nothing tells them apart.
  bool shows(Generation g) const {
    const bool v4 = only_v4_, v5 = only_v5_;
    if (v4 == v5) return true;
    return g == Generation::v4 ? v4 : v5;
  }
  // By layer, then kind.
  const std::map<std::pair<std::int64_t, std::size_t>, Seen>& seen() const { return seen_; }

 private:
  void look_at(const Module& module) {
    const auto match = find_place(draft_.index->places, module.name);
    if (!match) {
      const bool v4 = draft_.index->find_known(Generation::v4, module.name) != nullptr;
      const bool v5 = draft_.index->find_known(Generation::v5, module.name) != nullptr;
      if (draft_.index->dense && v4 != v5) (v4 ? only_v4_ : only_v5_) = true;
      return;
    }
    if (!match->layer.plain || !match->place->path.has_expert()) return;
    if (!match->expert.plain || match->expert.value >= kMaxExperts) {
      at(draft_.facts.file(), module.name)
          .fail(ErrorCode::LO_EXPERT,
                {.problem = "an expert index of the model is not a plain number of sensible size"});
    }
    if (!family_has_modules(match->place->kind, Generation::v5)) only_v4_ = true;
    Seen& seen = seen_[{match->layer.value, match->place->kind}];
    seen.num_experts = std::max(seen.num_experts, match->expert.value + 1);
    if (module.weight.size() != 2) return;
    const bool down = match->place->projection == Projection::down;
    seen.hidden = module.weight[down ? 0 : 1];
    seen.intermediate = module.weight[down ? 1 : 0];
  }

  void look_at(const Parameter& parameter) {
    const auto match = find_place(draft_.index->places, parameter.module);
    if (!match || !match->layer.plain || match->place->path.has_expert()) return;
    const Kind& kind = draft_.family()->kinds[match->place->kind];
    const auto* v4 = find_fused(kind, Generation::v4, parameter, match->layer.value);
    const auto* v5 = find_fused(kind, Generation::v5, parameter, match->layer.value);
    if (v4 != nullptr && v5 != nullptr && v4->in_out != v5->in_out) {
      (lies_as(*v4, kind.v4, parameter) ? v5 : v4) = nullptr;
    }
    if (v4 == nullptr && v5 == nullptr) return;
    if (v4 == nullptr) only_v5_ = true;
    if (v5 == nullptr) only_v4_ = true;
    measure(v5 != nullptr ? *v5 : *v4, parameter, seen_[{match->layer.value, match->place->kind}]);
  }

  const ExpertsForm::Fused* find_fused(const Kind& kind, Generation g, const Parameter& parameter,
                                       std::int64_t layer) const {
    const std::string& path = kind.path(g);
    for (const ExpertsForm::Fused& fused : kind.form.fused(g)) {
      if (fused.name != parameter.name || path.empty()) continue;
      if (PathTemplate(resolve_module(path, fused.module)).fill(layer) == parameter.module) return &fused;
    }
    return nullptr;
  }

  // qwen3_vl_moe transposed its parameters between the generations. The sizes in the config tell which one this is;
  // where they do not, the version in the config does.
  bool lies_as(const ExpertsForm::Fused& fused, const std::vector<const ExpertsRow*>& rows,
               const Parameter& parameter) const {
    const Lookup names = draft_.facts.names(*rows.front());
    std::vector<std::int64_t> expected;
    for (const std::string& dim : fused.dims) expected.push_back(evaluate_integer(dim, names).value_or(0));
    const bool square = parameter.shape.size() == 3 && parameter.shape[1] == parameter.shape[2];
    if (!square && expected.size() == 3 && expected[1] > 0 && expected[2] > 0) return expected == parameter.shape;
    return draft_.facts.transformers_version().starts_with("4.");
  }

  static void measure(const ExpertsForm::Fused& fused, const Parameter& parameter, Seen& seen) {
    if (fused.dims.size() != parameter.shape.size() || parameter.shape.size() != 3) return;
    const bool counts = fused.dims[0] == "E" || fused.dims[0].find_first_not_of("0123456789") == std::string::npos;
    if (counts) seen.num_experts = parameter.shape[0];
    if (fused.projections.empty()) return;
    const std::int64_t in = parameter.shape[fused.in_out ? 1 : 2], out = parameter.shape[fused.in_out ? 2 : 1];
    const bool down = fused.projections.front() == Projection::down;
    seen.hidden = down ? out : in;
    seen.intermediate = down ? in : out / static_cast<std::int64_t>(fused.projections.size());
  }

  bool family_has_modules(std::size_t kind, Generation g) const {
    const auto& rows = draft_.family()->kinds[kind].rows(g);
    return !rows.empty() && rows.front()->form.modules;
  }

  Draft& draft_;
  std::map<std::pair<std::int64_t, std::size_t>, Seen> seen_;
  bool only_v4_ = false, only_v5_ = false;
};

void take_size(Draft& draft, const Experts& experts, const char* what, std::int64_t seen, std::int64_t& stated) {
  if (seen <= 0 || seen == stated) return;
  if (stated > 0) {
    draft.model.notes.push_back(experts_module(experts) + ": " + what + " is " + std::to_string(seen) +
                                " in the tensors, " + std::to_string(stated) + " in the config; the tensors count");
  }
  stated = seen;
}

void check_size(const Draft& draft) {
  std::int64_t modules = 0;
  for (const Experts& experts : draft.model.experts) modules += 3 * experts.num_experts;
  if (modules > kMaxModules) {
    at(draft.facts.file())
        .fail(ErrorCode::MD_FORM, {.problem = "more experts than any model has",
                                   .expected = "at most " + std::to_string(kMaxModules) + " expert modules",
                                   .got = std::to_string(modules)});
  }
}

}  // namespace

void use_experts_of(Draft& draft, const ModuleTree& tree) {
  Observer observer(draft);
  observer.look_at(tree);
  for (const auto& [place, seen] : observer.seen()) {
    Experts& experts = add_experts(draft, place.second, place.first);
    if (seen.num_experts > 0) experts.num_experts = seen.num_experts;
    if (seen.hidden > 0) experts.hidden = seen.hidden;
    if (seen.intermediate > 0) experts.intermediate = seen.intermediate;
  }
  check_size(draft);
}

void use_shown_tree(Draft& draft, ModuleTree shown, bool in_registration_order) {
  Observer observer(draft);
  observer.look_at(shown);
  for (const auto& [place, seen] : observer.seen()) {
    Experts& experts = add_experts(draft, place.second, place.first);
    take_size(draft, experts, "the number of experts", seen.num_experts, experts.num_experts);
    take_size(draft, experts, "the hidden size", seen.hidden, experts.hidden);
    take_size(draft, experts, "the intermediate size", seen.intermediate, experts.intermediate);
  }
  check_size(draft);
  finish_tree(shown);
  Model& model = draft.model;
  model.index = draft.index;
  const auto tree_of = [&](Generation g, Generation other) {
    if (!observer.shows(g)) return rename_tree(model, shown, other, g);
    // A checkpoint does not show the order of parameters, and a quantised one names some of them otherwise: the experts
    // are made again from the row.
    return in_registration_order ? shown : rename_tree(model, shown, g, g);
  };
  if (observer.shows(Generation::v4) != observer.shows(Generation::v5)) {
    model.base_is_v4_only = observer.shows(Generation::v4);
    model.base_is_v5_only = observer.shows(Generation::v5);
  }
  if (draft.exists(Generation::v4)) model.v4 = tree_of(Generation::v4, Generation::v5);
  if (draft.exists(Generation::v5)) model.v5 = tree_of(Generation::v5, Generation::v4);
}

}  // namespace peft::model
