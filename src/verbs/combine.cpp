#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/system.h"
#include "peft/error.h"
#include "peft/low_rank.h"
#include "verbs/carried.h"
#include "verbs/combine_unit.h"
#include "verbs/low_rank_result.h"

namespace peft {
namespace {

using verbs::InputUnit;

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
  const auto usage = [&](std::string problem, std::string hint) {
    throw Error(ErrorCode::USAGE, {.problem = std::move(problem), .hint = std::move(hint)});
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
  std::vector<Input> inputs;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    InputOptions of_one = options;
    of_one.read.verb = verb;
    // All are of one model: without --base, the names of one may tell what the other's mean.
    for (std::size_t j = 0; options.base.empty() && j < adapters.size(); ++j) {
      if (j == i) continue;
      const auto names = module_names(adapters[j].path, options);
      of_one.further_names.insert(of_one.further_names.end(), names.begin(), names.end());
    }
    inputs.push_back(load(adapters[i].path, of_one));
    for (const TensorInfo& tensor : inputs.back().adapter.weights->tensors()) {
      adapter::require_finite(*inputs.back().adapter.weights, tensor);
    }
  }
  return inputs;
}

// The first adapter with experts has a layout; one without has none worth the name.
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

// Each unit on its own, as many at a time as fit into two gigabytes.
std::vector<verbs::CombinedUnit> compute(std::span<const InputUnit> units, std::span<const Input> inputs,
                                         const Job& job, Dtype dtype) {
  std::uint64_t largest = 1;
  for (const InputUnit& unit : units) largest = std::max(largest, memory_of(unit, job.rule));
  const auto fit = static_cast<int>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / largest, 1, kMaxThreads));
  std::vector<verbs::CombinedUnit> done(units.size());
  parallel_for(units.size(), std::min(thread_count(job.threads), fit), [&](std::size_t i, int) {
    done[i] = verbs::combine_unit(units[i], inputs, job.weights, job.rule, dtype);
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
  const auto units = verbs::units_of(inputs, first.model, to);
  auto done = compute(units, inputs, job, made.dtype);
  for (std::size_t i = 0; i < units.size(); ++i) {
    verbs::record(result, units[i].unit, done[i].pair ? done[i].pair->rank : 0, done[i].norm, done[i].error);
    if (done[i].pair) made.entries.push_back({units[i].unit, std::move(*done[i].pair)});
  }
  verbs::summarise(result);
  if (made.entries.empty()) {
    throw Error(ErrorCode::LO_NONE, {.file = inputs.front().adapter.folder,
                                     .problem = "the result is zero everywhere: there is no adapter to write",
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
