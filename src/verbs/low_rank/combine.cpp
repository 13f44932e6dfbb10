#include "verbs/low_rank/combine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/system.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "verbs/load.h"

namespace peft::verbs {
namespace {

using low_rank::Dense;
using low_rank::Operator;

constexpr double kCancelledSum = 0x1p-45;

// One adapter's share of a group, with its weight.
struct Term {
  GroupFactors factors;
  double weight = 1;
  std::size_t which = 0;
};

std::vector<Term> terms_of(const InputGroup& group, std::span<const Input> inputs, std::span<const double> weights) {
  std::vector<Term> terms;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Term term{read_group(group, i, *inputs[i].adapter.weights), weights[i], i};
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

void require_one_rank(const InputGroup& group, const std::vector<Term>& terms, std::span<const Input> inputs) {
  for (const Term& term : terms) {
    const std::int64_t rank = term.factors.values.a.cols, first = terms.front().factors.values.a.cols;
    if (rank == first) continue;
    peft::at(inputs[term.which].adapter.weights->path(), group.group.name())
        .fail(ErrorCode::LO_RANK,
              {.problem = "this type adds lora_A to lora_A element by element, and the ranks differ",
               .expected = fmt::format("rank {}, as in the first adapter", first),
               .got = fmt::format("rank {}", rank),
               .hint = "the same type with _svd, or linear, cat, svd"});
  }
}

// PEFT: the root of |w s| on both sides, the sign on A's; then the operator on the A's and on the B's.
low_rank::Factors on_factors(const InputGroup& group, std::vector<Term> terms, const CombineRule& rule) {
  std::vector<Dense> a, b;
  std::vector<double> a_weights, b_weights;
  std::vector<std::uint64_t> a_streams, b_streams;
  for (Term& term : terms) {
    const double c = term.weight * term.factors.scale, root = std::sqrt(std::abs(c));
    a.push_back(low_rank::transposed(term.factors.values.a));
    b.push_back(std::move(term.factors.values.b));
    a_weights.push_back(c >= 0 ? root : -root);
    b_weights.push_back(root);
    a_streams.push_back(low_rank::stream_of(group.group.name(), 2 * term.which));
    b_streams.push_back(low_rank::stream_of(group.group.name(), 2 * term.which + 1));
  }
  return {low_rank::apply(rule.op, std::move(b), b_weights, rule.options, b_streams),
          low_rank::transposed(low_rank::apply(rule.op, std::move(a), a_weights, rule.options, a_streams))};
}

Dense on_updates(const InputGroup& group, const std::vector<Term>& terms, const CombineRule& rule) {
  std::vector<Dense> updates;
  std::vector<double> weights;
  std::vector<std::uint64_t> streams;
  for (const Term& term : terms) {
    updates.push_back(low_rank::product(term.factors.values.b, term.factors.values.a));
    low_rank::scale(updates.back(), term.factors.scale);
    weights.push_back(term.weight);
    streams.push_back(low_rank::stream_of(group.group.name(), 2 * term.which));
  }
  return low_rank::apply(rule.op, std::move(updates), weights, rule.options, streams);
}

low_rank::Factors cut(low_rank::Spectrum spectrum, std::int64_t most) {
  const std::int64_t rank = low_rank::numerical_rank(spectrum, most == 0 ? spectrum.size() : most);
  return low_rank::split(std::move(spectrum), rank);
}

// `largest`: norm of the largest term. A sum far below it is what rounding left of terms that cancel.
CombinedGroup from_factors(const InputGroup& group, const low_rank::Factors& wanted, bool as_they_are,
                           std::int64_t most, Dtype dtype, double largest) {
  CombinedGroup result;
  if (wanted.a.cols == 0) return result;
  result.norm = low_rank::product_norm(wanted.b, wanted.a);
  if (result.norm <= kCancelledSum * largest) return result;
  const low_rank::Factors kept = as_they_are ? wanted : cut(low_rank::spectrum_of_product(wanted.b, wanted.a), most);
  result.pair = store(group.group, kept, dtype);
  result.error = low_rank::difference_norm(wanted, result.pair->values);
  return result;
}

CombinedGroup from_update(const InputGroup& group, Dense wanted, std::int64_t most, Dtype dtype) {
  CombinedGroup result;
  result.norm = low_rank::norm(wanted);
  if (result.norm == 0) return result;
  result.pair = store(group.group, cut(low_rank::spectrum_of(wanted, most), most), dtype);
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

CombinedGroup combine_group(const InputGroup& group, std::span<const Input> inputs, std::span<const double> weights,
                            const CombineRule& rule, Dtype dtype) {
  std::vector<Term> terms = terms_of(group, inputs, weights);
  switch (rule.on) {
    case CombineRule::On::sum: {
      double largest = 0;
      for (const Term& term : terms) largest = std::max(largest, norm_of(term));
      return from_factors(group, weighted_sum(std::move(terms)), rule.side_by_side, rule.most, dtype, largest);
    }
    case CombineRule::On::factors:
      require_one_rank(group, terms, inputs);
      return from_factors(group, on_factors(group, std::move(terms), rule), true, 0, dtype, 0);
    case CombineRule::On::updates:
      break;
  }
  return from_update(group, on_updates(group, terms, rule), rule.most, dtype);
}

std::uint64_t memory_of(const InputGroup& group, const CombineRule& rule) {
  const auto out = static_cast<std::uint64_t>(group.group.rows()), in = static_cast<std::uint64_t>(group.in);
  if (rule.on == CombineRule::On::updates) return 8 * out * in * (group.factors.size() + 2);
  std::uint64_t rank = 0;
  for (const auto& of_adapter : group.factors) {
    for (const Factor* factor : of_adapter) rank += factor == nullptr ? 0 : static_cast<std::uint64_t>(factor->rank);
  }
  return 64 * (out + in) * rank;
}

}  // namespace peft::verbs

namespace peft {
namespace {

using verbs::InputGroup;

constexpr std::array<std::string_view, 11> kTypes = {"linear",
                                                     "cat",
                                                     "svd",
                                                     "ties",
                                                     "dare_linear",
                                                     "dare_ties",
                                                     "magnitude_prune",
                                                     "ties_svd",
                                                     "dare_linear_svd",
                                                     "dare_ties_svd",
                                                     "magnitude_prune_svd"};

bool cuts(CombineType type) { return kTypes[static_cast<std::size_t>(type)].ends_with("svd"); }
bool prunes(CombineType type) { return type > CombineType::svd; }

void check_options(std::span<const WeightedAdapter> adapters, const CombineOptions& options) {
  const std::string type(kTypes[static_cast<std::size_t>(options.type)]);
  const auto usage = [](std::string problem, std::string hint) {
    at({}).fail(ErrorCode::USAGE, {.problem = std::move(problem), .hint = std::move(hint)});
  };
  if (adapters.empty()) usage("no adapter is given", "peft combine --help");
  if (prunes(options.type) && !options.density)
    usage("type " + type + " needs --density", "the part of the elements that is kept: --density 0.5");
  if (!prunes(options.type) && options.density)
    usage("type " + type + " prunes nothing: --density has no meaning", "leave it out, or another --type");
  if (options.density && !(*options.density >= 0 && *options.density <= 1))
    usage("--density is a number from 0 to 1", "--density 0.5");
  if (options.density && *options.density == 0 && options.type != CombineType::ties)
    usage("--density 0 keeps nothing", "--density 0.5");
  if (!cuts(options.type) && options.svd_rank != 0)
    usage("type " + type + " cuts no rank: --svd-rank has no meaning", "a type that ends in svd");
}

std::vector<Input> load_all(std::span<const WeightedAdapter> adapters, const InputOptions& options, Verb verb) {
  std::vector<verbs::AdapterToLoad> requests;
  for (const WeightedAdapter& adapter : adapters) {
    requests.push_back({adapter.path, options});
    requests.back().options.read.verb = verb;
  }
  std::vector<Input> inputs = verbs::load_together(requests);
  for (const Input& input : inputs) {
    for (const TensorInfo& tensor : input.adapter.weights->tensors())
      adapter::require_finite(*input.adapter.weights, tensor);
  }
  return inputs;
}

// The first adapter with experts, whose layout counts: without experts all layouts are the same.
const Input& leader(std::span<const Input> inputs) {
  const auto at = std::find_if(inputs.begin(), inputs.end(), [](const Input& i) { return i.reading.has_experts; });
  return at == inputs.end() ? inputs.front() : *at;
}

Dtype result_dtype(std::span<const Input> inputs, std::optional<Dtype> asked) {
  if (asked) return *asked;
  for (const Input& input : inputs) {
    for (const TensorInfo& tensor : input.adapter.weights->tensors()) {
      if (tensor.dtype == Dtype::f64) return Dtype::f64;
    }
  }
  return Dtype::f32;
}

std::int64_t largest_rank(std::span<const Input> inputs) {
  std::int64_t rank = 1;
  for (const Input& input : inputs) {
    for (const Factor& factor : input.reading.factors.factors) rank = std::max(rank, factor.rank);
  }
  return rank;
}

std::vector<ExpertCount> expert_counts(std::span<const Input> inputs) {
  std::vector<ExpertCount> counts;
  for (const Input& input : inputs) {
    for (const ExpertCount& count : input.reading.factors.expert_counts) {
      const auto at =
          std::find_if(counts.begin(), counts.end(), [&](const ExpertCount& c) { return c.module == count.module; });
      if (at == counts.end())
        counts.push_back(count);
      else
        at->count = std::max(at->count, count.count);
    }
  }
  return counts;
}

void warn_of_bases(std::span<const Input> inputs, std::vector<std::string>& warnings) {
  std::set<std::string> bases;
  for (const Input& input : inputs) {
    if (const auto text = left_out(input.reading); !text.empty())
      warnings.push_back(input.adapter.folder + ": " + text);
    if (const auto& base = input.adapter.config.base_model_name_or_path) bases.insert(*base);
    for (const auto& text : input.reading.factors.warnings) warnings.push_back(input.adapter.folder + ": " + text);
  }
  if (bases.size() > 1)
    warnings.push_back(fmt::format("the adapters name {} base models: {}", bases.size(), fmt::join(bases, ", ")));
}

struct Job {
  std::vector<double> weights;
  verbs::CombineRule rule;
  std::optional<Layout> to;
  std::optional<Dtype> dtype;
  int threads = 0;
  bool carry_all = false;  // one adapter's extras belong to its result as they are
};

// Each group on its own, as many at a time as fit into two gigabytes.
std::vector<verbs::CombinedGroup> compute(std::span<const InputGroup> groups, std::span<const Input> inputs,
                                          const Job& job, Dtype dtype) {
  std::uint64_t largest = 1;
  for (const InputGroup& group : groups) largest = std::max(largest, memory_of(group, job.rule));
  const auto fit = static_cast<int>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / largest, 1, kMaxThreads));
  std::vector<verbs::CombinedGroup> done(groups.size());
  parallel_for(groups.size(), std::min(thread_count(job.threads), fit), [&](std::size_t i, int) {
    done[i] = verbs::combine_group(groups[i], inputs, job.weights, job.rule, dtype);
  });
  return done;
}

LowRankResult run(std::span<const Input> inputs, const Job& job) {
  const Input& first = leader(inputs);
  const Layout to = job.to.value_or(first.reading.layout);
  verbs::NewAdapter made;
  made.dtype = result_dtype(inputs, job.dtype);
  made.expert_counts = expert_counts(inputs);
  AdapterConfig config = inputs.front().adapter.config;
  LowRankResult result;
  made.carried =
      job.carry_all ? verbs::carry_all(inputs.front()) : verbs::carry_for_combination(inputs, config, result.notes);
  const auto groups = verbs::groups_of(inputs, first.model, to);
  auto done = compute(groups, inputs, job, made.dtype);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    verbs::record(result, groups[i].group, done[i].pair ? done[i].pair->rank : 0, done[i].norm, done[i].error);
    if (done[i].pair) made.entries.push_back({groups[i].group, std::move(*done[i].pair)});
  }
  verbs::summarise(result);
  if (made.entries.empty()) {
    peft::at(inputs.front().adapter.folder)
        .fail(ErrorCode::LO_NONE, {.problem = "the result is zero everywhere: there is no adapter to write",
                                   .hint = "look at the weights, and at lora_B (peft inspect)"});
  }
  const bool keeps_values = job.rule.on == verbs::CombineRule::On::sum && job.rule.most == 0;
  std::vector<std::string> warnings;
  warn_of_bases(inputs, warnings);
  result.plan = made.plan(config, first.model, to);
  result.plan.exactness = keeps_values ? Exactness::rounded : Exactness::lossy;
  result.plan.warnings.insert(result.plan.warnings.begin(), warnings.begin(), warnings.end());
  for (const Input& input : inputs) {
    for (const auto& text : input.reading.unused) result.unused.push_back(input.adapter.folder + ": " + text);
  }
  for (const Input& input : inputs) result.plan.bytes_in += input.adapter.weights->file_size();
  for (auto& copy : side_file_paths(inputs.front().adapter)) result.plan.copies.push_back(std::move(copy));
  return result;
}

}  // namespace

std::span<const std::string_view> combine_types() { return kTypes; }

std::optional<CombineType> parse_combine_type(std::string_view name) {
  const auto at = std::find(kTypes.begin(), kTypes.end(), name);
  if (at == kTypes.end()) return std::nullopt;
  return static_cast<CombineType>(at - kTypes.begin());
}

LowRankResult plan_combine(std::span<const Input> inputs, std::span<const double> weights,
                           const CombineOptions& options) {
  for (const Input& input : inputs) require_usable(input.adapter.config, Verb::combine);
  Job job{.weights = {weights.begin(), weights.end()},
          .rule = verbs::rule_of(options.type),
          .to = options.to,
          .dtype = options.dtype,
          .threads = options.threads,
          .carry_all = false};
  job.rule.options = {options.density.value_or(1), options.majority_by_count, options.seed};
  if (cuts(options.type)) job.rule.most = options.svd_rank != 0 ? options.svd_rank : largest_rank(inputs);
  return run(inputs, job);
}

LowRankResult plan_combine(std::span<const WeightedAdapter> adapters, const CombineOptions& options) {
  check_options(adapters, options);
  const std::vector<Input> inputs = load_all(adapters, options.input, Verb::combine);
  std::vector<double> weights;
  for (const WeightedAdapter& adapter : adapters) weights.push_back(adapter.weight);
  return plan_combine(inputs, weights, options);
}

LowRankResult plan_resize(const std::string& adapter, const ResizeOptions& options) {
  if (options.rank < 1) throw Error(ErrorCode::USAGE, {.problem = "--rank is a positive number", .hint = "--rank 8"});
  const std::array<WeightedAdapter, 1> only = {WeightedAdapter{adapter, 1}};
  const std::vector<Input> inputs = load_all(only, options.input, Verb::resize);
  Job job{.weights = {1},
          .rule = verbs::rule_of(CombineType::svd),
          .to = options.to,
          .dtype = options.dtype,
          .threads = options.threads,
          .carry_all = true};
  job.rule.most = options.rank;
  return run(inputs, job);
}

}  // namespace peft
