#include "engines/judge.h"

#include <fmt/format.h>

#include <algorithm>

namespace peft::engines {
namespace {

bool fits(const Rule& rule, const Profile& profile, Part part, Facts facts, std::string_view model_type) {
  if (!rule.on.empty() && std::ranges::find(rule.on, part) == rule.on.end()) return false;
  if (!rule.since.empty() && version_less(profile.version, rule.since)) return false;
  if (!rule.until.empty() && !version_less(profile.version, rule.until)) return false;
  return rule.condition.holds(facts, model_type);
}

const Rule* find_rule(const Engine& engine, const Profile& profile, Part part, const AdapterFacts& adapter) {
  const Facts facts = adapter.facts | profile.facts;
  const auto rule = std::ranges::find_if(
      engine.rules, [&](const Rule& row) { return fits(row, profile, part, facts, adapter.model_type); });
  if (rule != engine.rules.end()) return &*rule;
  if (engine.like.empty()) return nullptr;
  const Chosen other = choose(engine.like);
  return find_rule(*other.engine, *other.profiles.front(), part, adapter);
}

}  // namespace

std::int64_t rank_limit(const Engine& engine, std::int64_t rank) {
  if (engine.ranks.empty()) return rank;
  const auto limit = std::ranges::lower_bound(engine.ranks, rank);
  return limit == engine.ranks.end() ? 0 : *limit;
}

Answer judge(const Engine& engine, const Profile& profile, const AdapterFacts& facts) {
  Answer answer{&engine, &profile, {}, Outcome::right};
  for (const auto& [part, count] : facts.parts) {
    Judgement judgement{part, count, Verdict::binds, find_rule(engine, profile, part, facts), {}};
    if (judgement.rule != nullptr) {
      judgement.verdict = judgement.rule->verdict;
      judgement.why = judgement.rule->why;
    }
    if (outcome_of(judgement.verdict) == Outcome::right && rank_limit(engine, count.rank) < count.rank) {
      judgement.verdict = Verdict::rank_too_large;
      judgement.why = fmt::format("rank {}; the largest it can be started with is {}", count.rank, engine.ranks.back());
    }
    answer.outcome = std::max(answer.outcome, outcome_of(judgement.verdict));
    answer.parts.push_back(std::move(judgement));
  }
  return answer;
}

const Judgement* Answer::decisive() const {
  if (outcome == Outcome::right) return nullptr;
  const auto part = std::ranges::find_if(parts, [&](const Judgement& j) { return outcome_of(j.verdict) == outcome; });
  return part == parts.end() ? nullptr : &*part;
}

bool is_measured(const Engine& engine, const Judgement& judgement) {
  const auto is_it = [&](const Rule& rule) { return &rule == judgement.rule; };
  return judgement.rule != nullptr && judgement.rule->measured && std::ranges::any_of(engine.rules, is_it);
}

bool is_measured(const Answer& answer) {
  if (const Judgement* decisive = answer.decisive()) return is_measured(*answer.engine, *decisive);
  return std::ranges::all_of(answer.parts, [&](const Judgement& part) { return is_measured(*answer.engine, part); });
}

}  // namespace peft::engines
