#include <fmt/format.h>

#include "engines/fit.h"
#include "engines/read_facts.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "verbs/convert.h"

namespace peft {
namespace {

using engines::Outcome;

constexpr std::string_view kMerge = "peft merge writes the model with the adapter in it, which every engine runs";

[[noreturn]] void no_form(const Input& input, const engines::Chosen& chosen, std::string tensor, std::string problem,
                          std::string hint) {
  at(input.adapter.weights->path(), std::move(tensor))
      .fail(ErrorCode::LO_NO_FORM, {.problem = std::move(problem),
                                    .expected = "something that " + chosen.engine->title + " reads right",
                                    .hint = std::move(hint)});
}

std::string way_out(const engines::Judgement& part, const engines::Chosen& chosen) {
  if (part.verdict == engines::Verdict::rank_too_large)
    return fmt::format("peft resize --rank {}", chosen.engine->ranks.back());
  if (part.part == engines::Part::magnitude)
    return std::string(kMerge) + "; peft extract --rank makes plain LoRA of the merged model, and measures the error";
  return std::string(kMerge);
}

// The form for this adapter. Everything that the engine would still drop, misread or refuse is an error.
engines::Fit fit_or_throw(const Input& input, const engines::Chosen& chosen) {
  const engines::AdapterFacts facts = engines::facts_of(input.adapter, input.model, input.reading);
  auto fit = engines::fit(chosen, facts, input.model);
  if (!fit) {
    const bool none = chosen.engine->forms.empty();
    no_form(
        input, chosen, {},
        chosen.engine->title + (none ? " takes no adapters" : " reads no form of this model's experts that is known"),
        std::string(kMerge));
  }
  if (!fit->layout) {
    no_form(input, chosen, {}, "it reads the layout " + fit->form->layout + ", which this version does not write",
            std::string(kMerge));
  }
  const engines::Judgement* bad = fit->answer.decisive();
  if (bad != nullptr && fit->answer.outcome != Outcome::unknown) {
    no_form(input, chosen, bad->count.example,
            fmt::format("{}: {}: {}", info(bad->part).text, name(bad->verdict), bad->why), way_out(*bad, chosen));
  }
  return *fit;
}

}  // namespace

EngineConversion plan_convert_for(const Input& input, const ConvertOptions& options, const std::string& engine,
                                  const std::string& out) {
  const engines::Chosen chosen = engines::choose(engine);
  const engines::Fit fit = fit_or_throw(input, chosen);
  const engines::Form& form = *fit.form;
  ConvertOptions own = options;
  own.to = *fit.layout;
  verbs::SuitedPlan suited =
      verbs::plan_suited(input, own, {form.spelling, form.all_projections, form.one_scale, form.one_rank});
  if (engines::rank_limit(*chosen.engine, suited.rank) < suited.rank) {
    no_form(
        input, chosen, {},
        fmt::format("rank {}, and the largest it can be started with is {}", suited.rank, chosen.engine->ranks.back()),
        fmt::format("peft resize --rank {}", chosen.engine->ranks.back()));
  }
  EngineConversion result{
      std::move(suited.plan), chosen.engine->name, fit.profile->version, fit.profile->mode, *fit.layout, form.why, {}};
  result.run = engines::run_lines(*chosen.engine, form, options.input.base, out, suited.rank);
  if (const engines::Judgement* unknown = fit.answer.decisive()) {
    result.plan.warnings.push_back(fmt::format("{}: not known whether {} reads this right: {}",
                                               info(unknown->part).text, chosen.engine->title, unknown->why));
  }
  return result;
}

}  // namespace peft
