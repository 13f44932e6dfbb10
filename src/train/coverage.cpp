#include "train/coverage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "model/path.h"
#include "peft/error.h"

namespace peft::train {
namespace {

std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t count = shape.empty() ? 0 : 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

std::string leaf_of(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// The experts' module that a target sits on; empty: none.
std::string experts_of(const Target& target, const Model& model) {
  const std::string module = target.parameter ? target.name.substr(0, target.name.rfind('.')) : target.name;
  const auto located = model.locate(module);
  return located && located->experts != nullptr ? located->experts->v5_module : std::string();
}

// What the projections of this model's experts are called, fused and one by one.
std::set<std::string> projection_names(const Model& model) {
  std::set<std::string> names;
  for (const Experts& experts : model.experts) {
    if (experts.form == nullptr) continue;
    for (const auto& fused : experts.form->v5) names.insert(fused.name);
    for (const auto& single : experts.form->per_expert) names.insert(single.name);
  }
  return names;
}

// The entries that name projections of experts; "all-linear" means everything.
std::vector<std::string> entries_for_experts(const AdapterConfig& config, const Model& model) {
  if (const auto* pattern = std::get_if<std::string>(&config.target_modules))
    return *pattern == "all-linear" ? std::vector<std::string>{*pattern} : std::vector<std::string>{};
  std::vector<std::string> found;
  const auto* list = std::get_if<std::vector<std::string>>(&config.target_modules);
  if (list == nullptr) return found;
  const std::set<std::string> names = projection_names(model);
  std::ranges::copy_if(*list, std::back_inserter(found), [&](const auto& e) { return names.contains(leaf_of(e)); });
  return found;
}

// Entries of the config, as PEFT converted it, that no target came from.
std::vector<std::string> unmatched_entries(const ResolvedTargets& resolved) {
  std::set<std::string> used;
  for (const Target& target : resolved.targets) used.insert(target.pattern);
  std::vector<std::string> entries = resolved.config_after.target_parameters.value_or(std::vector<std::string>{});
  if (const auto* list = std::get_if<std::vector<std::string>>(&resolved.config_after.target_modules))
    entries.insert(entries.end(), list->begin(), list->end());
  std::erase_if(entries, [&](const std::string& entry) { return used.contains(entry); });
  return entries;
}

class Rows {
 public:
  CoverageRow& at(const std::string& name, std::int64_t rank, double scale) {
    const std::string key = model::without_numbers(name);
    const auto [place, is_new] = places_.emplace(key, rows_.size());
    if (is_new) rows_.push_back({.name = key, .rank = rank, .scale = scale});
    CoverageRow& row = rows_[place->second];
    row.uneven = row.uneven || row.rank != rank || row.scale != scale;
    ++row.layers;
    return row;
  }
  std::vector<CoverageRow> take() { return std::move(rows_); }

 private:
  std::map<std::string, std::size_t> places_;
  std::vector<CoverageRow> rows_;
};

}  // namespace

Coverage coverage_of(const AdapterConfig& config, const ResolvedTargets& resolved, const ModuleTree& tree,
                     const Model& model) {
  Coverage coverage;
  std::set<std::string> with, trained;
  for (const Experts& experts : model.experts) with.insert(experts.v5_module);
  Rows rows;
  for (const Target& target : resolved.targets) {
    CoverageRow& row = rows.at(target.name, target.rank, target.scaling);
    row.parameters += elements(target.a) + elements(target.b);
    if (config.use_dora && !target.shape.empty()) row.parameters += target.shape.front();
    const std::string experts = experts_of(target, model);
    if (experts.empty()) continue;
    trained.insert(experts);
    const auto own = std::ranges::find(model.experts, experts, &Experts::v5_module);
    row.experts = own == model.experts.end() ? 0 : own->num_experts;
  }
  for (const std::string& saved : resolved.modules_to_save) {
    for (const peft::Module& module : tree.modules) {
      if (module.name == saved || module.name.starts_with(saved + "."))
        rows.at(module.name, 0, 0).parameters += elements(module.weight);
    }
  }
  coverage.rows = rows.take();
  coverage.unmatched = unmatched_entries(resolved);
  coverage.layers_with_experts = static_cast<std::int64_t>(with.size());
  coverage.layers_with_trained_experts = static_cast<std::int64_t>(trained.size());
  if (!with.empty() && trained.empty()) coverage.missed = entries_for_experts(config, model);
  return coverage;
}

void require_matches(const Coverage& coverage) {
  if (coverage.unmatched.empty()) return;
  at({}, coverage.unmatched.front())
      .fail(ErrorCode::CF_TARGET, {.problem = "the target matches nothing in this model",
                                   .expected = "names of its modules and parameters",
                                   .got = fmt::format("{}", fmt::join(coverage.unmatched, ", ")),
                                   .hint = "`peft targets` shows what a config matches"});
}

void require_experts(const Coverage& coverage, const Model& model, const std::string& flag) {
  if (coverage.missed.empty()) return;
  std::vector<std::string> parameters;
  for (const auto& fused : model.experts.front().form->v5) {
    if (!fused.projections.empty()) parameters.push_back("experts." + fused.name);
  }
  at({}, "target_modules")
      .fail(ErrorCode::CF_TARGET,
            {.problem = "the experts would not be trained: in this model they are parameters, which target_modules "
                        "does not reach",
             .expected = fmt::format("--target-parameters {}", fmt::join(parameters, ",")),
             .got = fmt::format("{}, which are found in dense parts only, of {} layers with experts",
                                fmt::join(coverage.missed, ", "), coverage.layers_with_experts),
             .hint = flag + " trains the dense parts alone"});
}

TrainingBytes bytes_for(std::int64_t trainable_parameters) {
  const std::uint64_t bytes = 4 * static_cast<std::uint64_t>(trainable_parameters);
  return {bytes, bytes, 2 * bytes};
}

}  // namespace peft::train
