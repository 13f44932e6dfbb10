#include "engines/fit.h"

#include <algorithm>

#include "engines/read_facts.h"
#include "model/path.h"

namespace peft::engines {
namespace {

// What facts_of() will say of the file that the form describes.
AdapterFacts after(const Form& form, Layout layout, AdapterFacts facts, const Model& model) {
  set_layout(facts, layout, model);
  for (const Fact fact :
       {Fact::string_targets, Fact::no_targets, Fact::pattern_misses_experts, Fact::uncovered_layers_random,
        Fact::saved_renamed, Fact::conversion_ranks, Fact::conversion_scale_gate_up, Fact::conversion_scale_down})
    if (!facts.has(Fact::per_expert)) facts.set(fact, false);
  facts.set(Fact::foreign_names, !form.spelling.empty() && facts.has(Fact::per_expert));
  if (form.one_scale) {
    for (const Fact fact : {Fact::rslora, Fact::alpha_pattern, Fact::uneven_scales}) facts.set(fact, false);
    if (form.one_rank) facts.set(Fact::uneven_alphas, false);
  }
  if (form.one_rank) facts.set(Fact::uneven_ranks, false);
  if (form.all_projections && facts.has(Fact::experts)) {
    for (const Fact fact : {Fact::gate, Fact::up, Fact::down, Fact::all_projections}) facts.set(fact);
    facts.set(Fact::gate_or_up_alone, false);
  }
  return facts;
}

const Profile* profile_with(const Chosen& chosen, Facts facts) {
  const auto found =
      std::ranges::find_if(chosen.profiles, [&](const Profile* p) { return (p->facts & facts) == facts; });
  return found == chosen.profiles.end() ? chosen.profiles.front() : *found;
}

}  // namespace

std::optional<Fit> fit(const Chosen& chosen, const AdapterFacts& facts, const Model& model) {
  const Facts known = facts.facts | chosen.profiles.front()->facts;
  const auto form = std::ranges::find_if(chosen.engine->forms,
                                         [&](const Form& row) { return row.condition.holds(known, facts.model_type); });
  if (form == chosen.engine->forms.end()) return std::nullopt;
  Fit result{&*form, profile_with(chosen, form->facts), parse_layout(form->layout), {}};
  if (result.layout) result.answer = judge(*chosen.engine, *result.profile, after(*form, *result.layout, facts, model));
  return result;
}

std::vector<std::string> run_lines(const Engine& engine, const Form& form, const std::string& base,
                                   const std::string& out, std::int64_t rank) {
  std::vector<std::string> lines;
  const std::int64_t limit = rank_limit(engine, rank);
  for (std::string line : form.run) {
    line = model::replace_all(std::move(line), "{base}", base.empty() ? "BASE" : base);
    line = model::replace_all(std::move(line), "{rank}", limit == 0 ? "RANK" : std::to_string(limit));
    line = model::replace_all(std::move(line), "{out}", out.empty() ? "OUT" : out);
    lines.push_back(std::move(line));
  }
  return lines;
}

std::vector<std::string> run_lines(const Answer& answer, const AdapterFacts& facts, std::string_view layout,
                                   const std::string& base, const std::string& path) {
  const auto& forms = answer.engine->forms;
  const Form* best = nullptr;
  for (const Form& form : forms) {
    if ((form.facts & ~answer.profile->facts) != 0) continue;
    if (best == nullptr) best = &form;
    const bool same =
        form.layout == layout && form.condition.holds(facts.facts | answer.profile->facts, facts.model_type);
    if (same || (form.facts != 0 && form.facts == answer.profile->facts)) best = &form;
    if (same) break;
  }
  return best == nullptr ? std::vector<std::string>() : run_lines(*answer.engine, *best, base, path, facts.rank);
}

}  // namespace peft::engines
