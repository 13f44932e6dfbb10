#include "verbs/combine_unit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "peft/error.h"

namespace peft::verbs {
namespace {

using low_rank::Dense;
using low_rank::Operator;

constexpr double kCancelled = 0x1p-45;

// One adapter's share of a unit, with its weight.
struct Term {
  UnitFactors factors;
  double weight = 1;
  std::size_t which = 0;
};

std::vector<Term> terms_of(const InputUnit& unit, std::span<const Input> inputs, std::span<const double> weights) {
  std::vector<Term> terms;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Term term{read_unit(unit, i, *inputs[i].adapter.weights), weights[i], i};
    if (term.factors.values.a.cols > 0) terms.push_back(std::move(term));
  }
  return terms;
}

double norm_of(const Term& term) {
  return std::abs(term.weight * term.factors.scale) *
         low_rank::product_norm(term.factors.values.b, term.factors.values.a);
}

// The weighted sum as one pair: B's side by side, scale and weight in them.
low_rank::Factors weighted_sum(std::vector<Term> terms) {
  std::vector<Dense> b, a;
  for (Term& term : terms) {
    const double c = term.weight * term.factors.scale;
    if (c == 0 && terms.size() > 1) continue;
    low_rank::scale(term.factors.values.b, c);
    b.push_back(std::move(term.factors.values.b));
    a.push_back(std::move(term.factors.values.a));
  }
  if (b.empty()) return {Dense(terms.front().factors.values.b.rows, 0), Dense(terms.front().factors.values.a.rows, 0)};
  return {low_rank::beside(b), low_rank::beside(a)};
}

void require_one_rank(const InputUnit& unit, const std::vector<Term>& terms, std::span<const Input> inputs) {
  for (const Term& term : terms) {
    const std::int64_t rank = term.factors.values.a.cols, first = terms.front().factors.values.a.cols;
    if (rank == first) continue;
    throw Error(ErrorCode::LO_RANK,
                {.file = inputs[term.which].adapter.weights->path(),
                 .tensor = unit.unit.name(),
                 .problem = "this type adds lora_A to lora_A element by element, and the ranks differ",
                 .expected = fmt::format("rank {}, as in the first adapter", first),
                 .got = fmt::format("rank {}", rank),
                 .hint = "the same type with _svd, or linear, cat, svd"});
  }
}

// PEFT: the root of |w s| on both sides, the sign on A's; then the operator on the A's and on the B's.
low_rank::Factors on_factors(const InputUnit& unit, std::vector<Term> terms, const CombineRule& rule) {
  std::vector<Dense> a, b;
  std::vector<double> a_weights, b_weights;
  std::vector<std::uint64_t> a_streams, b_streams;
  for (Term& term : terms) {
    const double c = term.weight * term.factors.scale, root = std::sqrt(std::abs(c));
    a.push_back(low_rank::transposed(term.factors.values.a));
    b.push_back(std::move(term.factors.values.b));
    a_weights.push_back(c >= 0 ? root : -root);
    b_weights.push_back(root);
    a_streams.push_back(low_rank::stream_of(unit.unit.name(), 2 * term.which));
    b_streams.push_back(low_rank::stream_of(unit.unit.name(), 2 * term.which + 1));
  }
  return {low_rank::apply(rule.op, std::move(b), b_weights, rule.options, b_streams),
          low_rank::transposed(low_rank::apply(rule.op, std::move(a), a_weights, rule.options, a_streams))};
}

Dense on_updates(const InputUnit& unit, const std::vector<Term>& terms, const CombineRule& rule) {
  std::vector<Dense> updates;
  std::vector<double> weights;
  std::vector<std::uint64_t> streams;
  for (const Term& term : terms) {
    updates.push_back(low_rank::product(term.factors.values.b, term.factors.values.a));
    low_rank::scale(updates.back(), term.factors.scale);
    weights.push_back(term.weight);
    streams.push_back(low_rank::stream_of(unit.unit.name(), 2 * term.which));
  }
  return low_rank::apply(rule.op, std::move(updates), weights, rule.options, streams);
}

low_rank::Factors cut(low_rank::Spectrum spectrum, std::int64_t most) {
  const std::int64_t rank = low_rank::numerical_rank(spectrum, most == 0 ? spectrum.size() : most);
  return low_rank::split(std::move(spectrum), rank);
}

// `largest`: norm of the largest term. A sum far below it is what rounding left of terms that cancel.
CombinedUnit from_factors(const InputUnit& unit, const low_rank::Factors& wanted, bool as_they_are, std::int64_t most,
                          Dtype dtype, double largest) {
  CombinedUnit result;
  if (wanted.a.cols == 0) return result;
  result.norm = low_rank::product_norm(wanted.b, wanted.a);
  if (result.norm <= kCancelled * largest) return result;
  const low_rank::Factors kept = as_they_are ? wanted : cut(low_rank::spectrum_of_product(wanted.b, wanted.a), most);
  result.pair = store(unit.unit, kept, dtype);
  result.error = low_rank::difference_norm(wanted, result.pair->values);
  return result;
}

CombinedUnit from_update(const InputUnit& unit, Dense wanted, std::int64_t most, Dtype dtype) {
  CombinedUnit result;
  result.norm = low_rank::norm(wanted);
  if (result.norm == 0) return result;
  result.pair = store(unit.unit, cut(low_rank::spectrum_of(wanted, most), most), dtype);
  result.error = low_rank::residual_norm(wanted, result.pair->values);
  return result;
}

}  // namespace

CombineRule rule_of(CombineType type) {
  using On = CombineRule::On;
  switch (type) {
    case CombineType::linear:
      return {};
    case CombineType::cat:
      return {.on = On::sum, .op = Operator::linear, .options = {}, .side_by_side = true, .most = 0};
    case CombineType::svd:
      return {};
    case CombineType::ties:
      return {On::factors, Operator::ties, {}, false, 0};
    case CombineType::dare_linear:
      return {On::factors, Operator::dare_linear, {}, false, 0};
    case CombineType::dare_ties:
      return {On::factors, Operator::dare_ties, {}, false, 0};
    case CombineType::magnitude_prune:
      return {On::factors, Operator::magnitude_prune, {}, false, 0};
    case CombineType::ties_svd:
      return {On::updates, Operator::ties, {}, false, 0};
    case CombineType::dare_linear_svd:
      return {On::updates, Operator::dare_linear, {}, false, 0};
    case CombineType::dare_ties_svd:
      return {On::updates, Operator::dare_ties, {}, false, 0};
    case CombineType::magnitude_prune_svd:
      return {On::updates, Operator::magnitude_prune, {}, false, 0};
  }
  return {};
}

CombinedUnit combine_unit(const InputUnit& unit, std::span<const Input> inputs, std::span<const double> weights,
                          const CombineRule& rule, Dtype dtype) {
  std::vector<Term> terms = terms_of(unit, inputs, weights);
  switch (rule.on) {
    case CombineRule::On::sum: {
      double largest = 0;
      for (const Term& term : terms) largest = std::max(largest, norm_of(term));
      return from_factors(unit, weighted_sum(std::move(terms)), rule.side_by_side, rule.most, dtype, largest);
    }
    case CombineRule::On::factors:
      require_one_rank(unit, terms, inputs);
      return from_factors(unit, on_factors(unit, std::move(terms), rule), true, 0, dtype, 0);
    case CombineRule::On::updates:
      break;
  }
  return from_update(unit, on_updates(unit, terms, rule), rule.most, dtype);
}

std::uint64_t memory_of(const InputUnit& unit, const CombineRule& rule) {
  const auto out = static_cast<std::uint64_t>(unit.unit.rows()), in = static_cast<std::uint64_t>(unit.in);
  if (rule.on == CombineRule::On::updates) return 8 * out * in * (unit.factors.size() + 2);
  std::uint64_t rank = 0;
  for (const auto& of_adapter : unit.factors) {
    for (const Factor* factor : of_adapter) rank += factor == nullptr ? 0 : static_cast<std::uint64_t>(factor->rank);
  }
  return 64 * (out + in) * rank;
}

}  // namespace peft::verbs
