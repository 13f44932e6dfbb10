#include "model/describe/from_names.h"

#include <algorithm>
#include <map>
#include <set>

#include "model/describe/draft.h"
#include "model/path.h"

namespace peft::model {
namespace {

// One name of each form: the same up to its numbers.
std::vector<std::string> samples(const std::vector<std::string>& names) {
  std::map<std::string, std::string> by_key;
  for (const std::string& name : names) by_key.try_emplace(path_key(name).key, name);
  std::vector<std::string> result;
  for (auto& [key, name] : by_key) result.push_back(std::move(name));
  return result;
}

std::string describe_form(const std::vector<ExpertsForm::Fused>& list) {
  std::string text;
  for (const ExpertsForm::Fused& parameter : list) {
    text += parameter.module + "/" + parameter.name + (parameter.in_out ? " in,out" : " out,in") +
            (parameter.interleaved ? " interleaved" : "") +
            (parameter.is_transposed.value_or(false) ? " flag" : "");  // PEFT reads no flag as a false one
    for (const Projection projection : parameter.projections) text += " " + std::string(name(projection));
    text += ";";
  }
  return text;
}

// All that decides how these names are read. Two families with the same text read them alike.
std::string mapping_of(const Model& model, const std::vector<std::string>& names) {
  std::set<std::size_t> kinds;
  bool per_expert = false;
  for (const std::string& module : names) {
    if (const auto match = find_place(model.index->places, module)) {
      kinds.insert(match->place->kind);
      per_expert = per_expert || match->place->path.has_expert();
    }
  }
  const Generation from = per_expert ? Generation::v4 : Generation::v5,
                   to = per_expert ? Generation::v5 : Generation::v4;
  std::string text;
  for (const std::string& module : names) text += model.rename(module, from, to) + "|";
  for (const std::size_t number : kinds) {
    const Kind& kind = model.index->family->kinds[number];
    text += kind.v4_path + ">" + kind.v5_path + ":" + kind.form.expert_name;
    for (const auto& module : kind.form.per_expert)
      text += " " + std::string(name(module.projection)) + "=" + module.name;
    // The form of v4 parameters matters only where no per-expert modules exist.
    text += "[" + (kind.form.per_expert.empty() ? describe_form(kind.form.v4) : "") + "][" +
            describe_form(kind.form.v5) + "]";
  }
  return text;
}

struct Candidate {
  std::string type;
  std::size_t fits = 0;
  bool own_names = false;  // every name is one of a class, not only one of checkpoints from elsewhere
  Model model;
};

Candidate try_family(const std::shared_ptr<const Table>& table, const std::string& type,
                     const std::vector<std::string>& names) {
  Draft draft = draft_for(table, type, {});
  Candidate candidate{type, 0, true, std::move(draft.model)};
  candidate.model.index = draft.index;
  for (const std::string& module : names) {
    const auto match = find_place(draft.index->places, module);
    if (!match) continue;
    ++candidate.fits;
    const Kind& kind = draft.family()->kinds[match->place->kind];
    const bool foreign = match->place->spelling == Generation::v4 && kind.form.per_expert_on_disk_only &&
                         up_to_layer(kind.v4_path) != up_to_layer(kind.v5_path);
    candidate.own_names = candidate.own_names && !foreign;
  }
  return candidate;
}

// Finds the experts that names of an adapter are about.
void use_names(Draft& draft, const std::vector<std::string>& names, std::int64_t num_experts) {
  std::map<std::pair<std::int64_t, std::size_t>, std::int64_t> highest;  // layer, kind -> highest index + 1
  for (const std::string& module : names) {
    const auto match = find_adapter_place(*draft.index, module);
    if (!match || !match->layer.plain || match->layer.value >= kMaxLayers) continue;
    std::int64_t& count = highest[{match->layer.value, match->place->kind}];
    const bool indexed = match->place->path.has_expert() && match->expert.plain && match->expert.value < kMaxExperts;
    if (indexed) count = std::max(count, match->expert.value + 1);
  }
  std::int64_t most = 0;
  for (const auto& [place, count] : highest) most = std::max(most, count);
  draft.model.num_experts_assumed = num_experts == 0 && most > 0;
  for (const auto& [place, count] : highest) {
    add_experts(draft, place.second, place.first).num_experts = num_experts > 0 ? num_experts : most;
  }
  draft.model.index = draft.index;
}

}  // namespace

Model model_from_names(const std::shared_ptr<const Table>& table, const DescribeOptions& options) {
  const std::vector<std::string> forms = samples(options.names);
  std::vector<Candidate> candidates;
  std::size_t best = 0;
  for (const auto& [type, family] : table->families) {
    Candidate candidate = try_family(table, type, forms);
    best = std::max(best, candidate.fits);
    if (candidate.fits > 0) candidates.push_back(std::move(candidate));
  }
  std::erase_if(candidates, [&](const Candidate& c) { return c.fits < best; });
  const bool some_own =
      std::any_of(candidates.begin(), candidates.end(), [](const Candidate& c) { return c.own_names; });
  if (some_own) std::erase_if(candidates, [](const Candidate& c) { return !c.own_names; });
  Draft draft = draft_without_row(table, {});
  draft.model.index = draft.index;
  if (candidates.empty()) return std::move(draft.model);

  std::set<std::string> mappings;
  std::string types;
  for (const Candidate& candidate : candidates) {
    mappings.insert(mapping_of(candidate.model, forms));
    types += (types.empty() ? "" : ", ") + candidate.type;
  }
  if (mappings.size() > 1) {
    draft.model.notes.push_back("the names fit several model types that store experts differently: " + types);
    return std::move(draft.model);
  }
  draft = draft_for(table, candidates.front().type, {});
  use_names(draft, options.names, options.num_experts);
  draft.model.model_type = draft.model.default_targets_type = candidates.size() == 1 ? candidates.front().type : "";
  draft.model.notes.push_back("model type taken from the names; it is one of: " + types);
  return std::move(draft.model);
}

Model model_from_family(const std::shared_ptr<const Table>& table, const DescribeOptions& options) {
  Draft draft = draft_for(table, options.family, {});
  use_names(draft, options.names, options.num_experts);
  // The adapter of a composite may come from its text class, whose names have another prefix.
  if (draft.model.experts.empty() && draft.family() != nullptr) {
    for (const auto& [key, type] : draft.family()->sub_configs) {
      if (!table->families.contains(type)) continue;
      Draft part = draft_for(table, type, {});
      use_names(part, options.names, options.num_experts);
      if (part.model.experts.empty()) continue;
      part.model.notes.push_back("the names are those of \"" + type + "\", the text part of \"" + options.family +
                                 "\"");
      draft = std::move(part);
      break;
    }
  }
  draft.model.source = "family table (" + options.family + ") and names";
  return std::move(draft.model);
}

}  // namespace peft::model
