#include "verbs/low_rank/extract.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/float_formats.h"
#include "base/system.h"
#include "config/peft_rules.h"
#include "model/path.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "verbs/low_rank/groups.h"
#include "verbs/low_rank/new_adapter.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {
namespace {

using low_rank::Dense;

constexpr std::int64_t kColumns = 256;  // read at a time
constexpr double kMargin = 1.05;        // over the expected norm of the noise, which hardly varies

// The difference, and what is known about the roundings in it.
struct Difference {
  Dense values;
  bool explained = true;                     // every element is within the rounding of a cast
  std::vector<double> row_noise, col_noise;  // variances, summed
};

void add_columns(Difference& difference, const GroupWeights& weights, std::size_t site, const Dense& before,
                 const Dense& after, std::int64_t first, Dtype base_dtype, Dtype dtype) {
  const Precision precision = precision_of(dtype);
  const bool narrower = precision.bits < precision_of(base_dtype).bits;
  const std::int64_t row0 = weights.group.first_row(site), step = weights.group.row_step();
  for (std::int64_t j = 0; j < before.cols; ++j) {
    for (std::int64_t i = 0; i < before.rows; ++i) {
      const double delta = after.at(i, j) - before.at(i, j), ulp = last_place(precision, after.at(i, j));
      if (!std::isfinite(delta)) {
        at({}, weights.group.name())
            .fail(ErrorCode::NUM_NONFINITE, {.problem = "NaN or infinity in one of the models"});
      }
      const std::int64_t row = row0 + i * step;
      difference.values.at(row, first + j) = delta;
      if (delta != 0 && !(narrower && std::abs(delta) <= ulp / 2)) difference.explained = false;
      difference.row_noise[static_cast<std::size_t>(row)] += ulp * ulp / 12;
      difference.col_noise[static_cast<std::size_t>(first + j)] += ulp * ulp / 12;
    }
  }
}

// Of the values: codes and scales make numbers of fp32, which whoever wrote the other model has rounded.
Dtype value_dtype(const ModelWeights& side, const Weight& weight) {
  return weight.parts.front().scales ? Dtype::f32 : side.info(weight).dtype;
}

Difference read_difference(const GroupWeights& weights, const ModelWeights& base, const ModelWeights& finetuned) {
  const std::int64_t rows = weights.group.rows();
  Difference difference{Dense(rows, weights.in), true, std::vector<double>(static_cast<std::size_t>(rows)),
                        std::vector<double>(static_cast<std::size_t>(weights.in))};
  for (std::size_t s = 0; s < weights.base.size(); ++s) {
    const Weight &before = weights.base[s], &after = weights.finetuned[s];
    for (std::int64_t first = 0; first < weights.in; first += kColumns) {
      const std::int64_t count = std::min(kColumns, weights.in - first);
      add_columns(difference, weights, s, base.read(before, first, count), finetuned.read(after, first, count), first,
                  value_dtype(base, before), value_dtype(finetuned, after));
    }
  }
  return difference;
}

// What the roundings of the fine-tuned weights add to singular values: a matrix of independent errors has a norm of at
// most its largest row's plus its largest column's (Bandeira and van Handel).
double noise_floor(const Difference& difference) {
  const auto largest = [](const std::vector<double>& sums) {
    return std::sqrt(*std::max_element(sums.begin(), sums.end()));
  };
  return kMargin * (largest(difference.row_noise) + largest(difference.col_noise));
}

}  // namespace

ExtractedGroup extract_group(const GroupWeights& weights, const ModelWeights& base, const ModelWeights& finetuned,
                             std::int64_t rank, Dtype dtype) {
  Difference difference = read_difference(weights, base, finetuned);
  ExtractedGroup result;
  if (difference.explained) return result;
  result.norm = low_rank::norm(difference.values);
  low_rank::Spectrum spectrum = low_rank::spectrum_of(difference.values, rank);
  const std::int64_t kept =
      std::max<std::int64_t>(1, low_rank::numerical_rank(spectrum, rank, noise_floor(difference)));
  result.pair = store(weights.group, low_rank::split(std::move(spectrum), kept), dtype);
  result.error = low_rank::residual_norm(difference.values, result.pair->values);
  return result;
}

std::uint64_t memory_of(const GroupWeights& weights) {
  const auto out = static_cast<std::uint64_t>(weights.group.rows()), in = static_cast<std::uint64_t>(weights.in);
  return 10 * out * in + 64 * 64 * (out + in);
}

}  // namespace peft::verbs

namespace peft {
namespace {

using verbs::GroupWeights;
using verbs::ModelWeights;

class Extraction {
 public:
  explicit Extraction(const ExtractOptions& options)
      : options_(options),
        model_(describe(
            {.base = resolve_path(options.base), .family = options.family, .families_file = options.families_file})),
        base_(model_, options.base, options.open),
        finetuned_(model_, options.finetuned, options.open),
        to_(options.to.value_or(base_.fused || finetuned_.fused || model_.experts.empty() ? Layout::peft_fused
                                                                                          : Layout::peft_per_expert)) {}

  LowRankResult run();

 private:
  bool is_saved(const std::string& module);
  Weight weight_of(const ModelWeights& side, const ModelWeights& other, const Site& site);
  void pair_sites();
  void pair_others();
  void save_module(const std::string& module);
  void complain();
  void compute();
  AdapterConfig config() const;
  void missing(const ModelWeights& from, std::string name) {
    unmatched_.push_back((&from == &base_ ? "base: " : "finetuned: ") + std::move(name));
  }

  const ExtractOptions& options_;
  Model model_;
  ModelWeights base_, finetuned_;
  Layout to_;
  std::vector<GroupWeights> groups_;
  std::vector<std::string> changed_, unmatched_;  // what LoRA cannot hold; what only one model has
  std::set<std::string> saved_, entries_;         // modules carried whole, and the options that name them
  std::set<std::string> saved_modules_;
  bool any_linear_ = false, any_conv1d_ = false;
  verbs::NewAdapter made_;
  LowRankResult result_;
};

// "norm" means a module whose last name it is, or a whole path.
bool Extraction::is_saved(const std::string& module) {
  for (const std::string& entry : options_.modules_to_save) {
    if (!config::is_named_by(module, entry)) continue;
    entries_.insert(entry);
    return true;
  }
  return false;
}

std::optional<Weight> tied(const Model& model, const ModelWeights& side, const Site& site) {
  const auto& tree = model.tree(Generation::v5) ? model.tree(Generation::v5) : model.tree(Generation::v4);
  if (!tree || site.module != tree->output_embedding || tree->input_embedding.empty()) return std::nullopt;
  auto weight = side.weights.find(Site{tree->input_embedding, "", -1, Projection::none});
  if (weight) {  // an embedding is seen as [dim, vocabulary]
    for (WeightPart& part : weight->parts) part.view = part.view.transposed();
    std::swap(weight->out, weight->in);
  }
  return weight;
}

// Both models' matrices of a site, gate and up side by side where the layout holds them in one pair.
void Extraction::pair_sites() {
  std::vector<Site> sites = base_.sites;
  sites.insert(sites.end(), finetuned_.sites.begin(), finetuned_.sites.end());
  std::sort(sites.begin(), sites.end(), [](const Site& x, const Site& y) { return site_less(x, y); });
  sites.erase(std::unique(sites.begin(), sites.end()), sites.end());
  for (const Site& site : sites) {
    auto before = base_.weights.find(site), after = finetuned_.weights.find(site);
    if (!before) before = tied(model_, base_, site);
    if (!after) after = tied(model_, finetuned_, site);
    if (!before || !after) {
      missing(before ? base_ : finetuned_, describe(site));
      continue;
    }
    if (before->out != after->out || before->in != after->in) {
      at(options_.finetuned, describe(site))
          .fail(ErrorCode::LO_SHAPE, {.problem = "this matrix has another shape than in the base model",
                                      .expected = fmt::format("[{}, {}]", before->out, before->in),
                                      .got = fmt::format("[{}, {}]", after->out, after->in)});
    }
    if (site.expert < 0 && is_saved(site.module)) {
      if (!verbs::same_bytes(base_, *before, finetuned_, *after)) saved_.insert(site.module);
      continue;
    }
    const auto kind = model_.kind(Generation::v5, site.module);
    const bool second = site.projection == Projection::up && !groups_.empty() &&
                        groups_.back().group.sites.size() == 1 &&
                        groups_.back().group.sites[0] == Site{site.module, "", site.expert, Projection::gate};
    const verbs::JoinRule rule = second ? verbs::join_rule(model_, to_, site) : verbs::JoinRule{};
    if (!rule.one_parameter) groups_.emplace_back();
    GroupWeights& group = groups_.back();
    group.group.interleaved = rule.interleaved;
    group.group.sites.push_back(site);
    group.group.out.push_back(before->out);
    group.group.kind = kind == ModuleKind::embedding ? FactorKind::embedding : FactorKind::linear;
    group.in = before->in;
    group.base.push_back(std::move(*before));
    group.finetuned.push_back(std::move(*after));
  }
}

// Norms, biases and the like: the same, saved whole, or in the way.
void Extraction::pair_others() {
  for (const ModelWeights::Other& other : base_.others) {
    const auto before = base_.weights.find(other.module, other.parameter);
    const auto after = finetuned_.weights.find(other.module, other.parameter);
    if (!after || !before) {
      missing(base_, other.module + "." + other.parameter);
      continue;
    }
    if (verbs::same_bytes(base_, *before, finetuned_, *after)) continue;
    const bool same_values = before->out == after->out && before->in == after->in &&
                             is_float(base_.info(*before).dtype) && is_float(finetuned_.info(*after).dtype) &&
                             base_.info(*before).dtype != finetuned_.info(*after).dtype &&
                             base_.read(*before, 0, before->in).values == finetuned_.read(*after, 0, after->in).values;
    if (same_values) continue;
    if (is_saved(other.module))
      saved_.insert(other.module);
    else
      changed_.push_back(other.module + "." + other.parameter);
  }
  for (const ModelWeights::Other& other : finetuned_.others) {
    if (!base_.weights.find(other.module, other.parameter)) missing(finetuned_, other.module + "." + other.parameter);
  }
}

// Every parameter of the module, as the fine-tuned model has it.
void Extraction::save_module(const std::string& module) {
  for (const char* parameter : {"weight", "bias"}) {
    const auto weight = finetuned_.weights.find(module, parameter);
    if (!weight) continue;
    const Extra extra{ExtraKind::saved_module, {module, "", -1, Projection::none}, parameter, 0};
    const auto& file = *finetuned_.checkpoint.files()[weight->parts.front().view.source];
    made_.carried.push_back(verbs::carry(file, finetuned_.info(*weight), extra));
  }
}

std::string listed(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  const std::size_t shown = std::min(names.size(), kShown);
  std::string text =
      fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

void Extraction::complain() {
  if (options_.ignore_unused) {
    if (!changed_.empty())
      result_.notes.push_back(fmt::format("{} tensors changed that LoRA cannot hold, and are not in the result: {}",
                                          changed_.size(), listed(changed_)));
    if (!unmatched_.empty())
      result_.notes.push_back(
          fmt::format("{} tensors are in one of the models only: {}", unmatched_.size(), listed(unmatched_)));
    return;
  }
  if (!unmatched_.empty()) {
    at(options_.finetuned, unmatched_.front())
        .fail(ErrorCode::LO_NO_FORM,
              {.problem = "the two models do not have the same tensors",
               .expected = "the same names and modules, in any form",
               .got = fmt::format("{} in one of them only: {}", unmatched_.size(), listed(unmatched_)),
               .hint = "--ignore-unused leaves out them"});
  }
  if (changed_.empty()) return;
  at(options_.finetuned, changed_.front())
      .fail(ErrorCode::LO_NO_FORM,
            {.problem = fmt::format("{} tensors changed that LoRA cannot hold", changed_.size()),
             .expected = "changes of matrices alone",
             .got = listed(changed_),
             .hint = "--modules-to-save NAME carries a module whole; --ignore-unused leaves them out"});
}

void Extraction::compute() {
  const auto changed = [&](const GroupWeights& group) {
    for (std::size_t i = 0; i < group.base.size(); ++i) {
      if (!verbs::same_bytes(base_, group.base[i], finetuned_, group.finetuned[i])) return true;
    }
    return false;
  };
  std::uint64_t largest = 1;
  for (const GroupWeights& group : groups_) largest = std::max(largest, verbs::memory_of(group));
  const auto fit = static_cast<int>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / largest, 1, kMaxThreads));
  std::vector<verbs::ExtractedGroup> done(groups_.size());
  parallel_for(groups_.size(), std::min(thread_count(options_.threads), fit), [&](std::size_t i, int) {
    if (changed(groups_[i])) done[i] = verbs::extract_group(groups_[i], base_, finetuned_, options_.rank, made_.dtype);
  });
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    if (!done[i].pair) continue;
    verbs::record(result_, groups_[i].group, done[i].pair->rank, done[i].norm, done[i].error);
    const bool turned = model_.kind(Generation::v5, groups_[i].group.sites[0].module) == ModuleKind::conv1d;
    (turned ? any_conv1d_ : any_linear_) = true;
    made_.entries.push_back({groups_[i].group, std::move(*done[i].pair)});
  }
}

AdapterConfig Extraction::config() const {
  AdapterConfig config = AdapterConfig::parse(
      R"({"alpha_pattern": {}, "base_model_name_or_path": null, "bias": "none", "fan_in_fan_out": false, "inference_mode": true,)"
      R"( "init_lora_weights": true, "lora_alpha": 8, "lora_dropout": 0.0, "modules_to_save": null, "peft_type": "LORA", "r": 8,)"
      R"( "rank_pattern": {}, "target_modules": [], "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": false})",
      "the new config");
  config.base_model_name_or_path = options_.base;
  config.fan_in_fan_out = any_conv1d_ && !any_linear_;
  config.r = options_.rank;
  config.lora_alpha = {static_cast<double>(options_.rank), true};
  if (!entries_.empty() && !saved_.empty()) config.modules_to_save.emplace(entries_.begin(), entries_.end());
  return config;
}

LowRankResult Extraction::run() {
  made_.dtype = options_.dtype.value_or(Dtype::f32);
  pair_sites();
  pair_others();
  complain();
  for (const std::string& module : saved_) save_module(module);
  compute();
  verbs::summarise(result_);
  if (made_.entries.empty() && made_.carried.empty()) {
    at(options_.finetuned)
        .fail(ErrorCode::LO_NONE, {.problem = "no weight differs from the base model: there is no adapter to write"});
  }
  for (const Experts& experts : model_.experts) {
    if (experts.num_experts > 0) made_.expert_counts.push_back({experts_module(experts), experts.num_experts});
  }
  result_.plan = made_.plan(config(), model_, to_);
  result_.plan.exactness = Exactness::lossy;
  if (base_.weights.has_own_output())
    result_.plan.warnings.push_back(own_output_text(resolve_path(options_.base) + "/config.json"));
  for (const auto* side : {&base_, &finetuned_}) {
    for (const auto& file : side->checkpoint.files()) result_.plan.bytes_in += file->file_size();
  }
  return std::move(result_);
}

}  // namespace

LowRankResult plan_extract(const ExtractOptions& options) {
  if (options.rank < 1) throw Error(ErrorCode::USAGE, {.problem = "--rank is a positive number", .hint = "--rank 16"});
  return Extraction(options).run();
}

}  // namespace peft
