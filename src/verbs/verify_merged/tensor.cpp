#include "verbs/verify_merged/tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "adapter/view_math.h"
#include "base/float_formats.h"
#include "peft/execute.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {
namespace {

constexpr std::int64_t kElements = 1 << 18;  // of a chunk

// The tensor is a source's tensor as it is, and the merged model has the same bytes.
bool same_copy(const ExpectedTensor& expected, const MergedModel& merged, const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  if (planned.merge || planned.blocks.size() != 1) return false;
  const Block& block = planned.blocks.front();
  const View& view = block.source;
  const TensorFile& file = *expected.merge->plan.sources[view.source];
  const TensorInfo& source = file.tensors()[view.tensor];
  const bool whole = block.scale == 1 && !block.scales && source.dtype == planned.dtype && view.offset == 0 &&
                     view.rows == planned.rows && view.cols == planned.cols &&
                     (view.rows <= 1 || view.row_stride == view.cols) && (view.cols <= 1 || view.col_stride == 1);
  if (!whole) return false;
  const auto found = merged.bytes(counterpart, planned), wanted = file.bytes(source);
  return found.size() == wanted.size() && std::memcmp(found.data(), wanted.data(), found.size()) == 0;
}

constexpr double kFloatRounding = 0x1p-24;

// Norms of the rows of a factor. A b without rows stands for ones.
std::vector<double> row_norms(const Plan& plan, const View& view, std::int64_t rows) {
  std::vector<double> norms(static_cast<std::size_t>(rows), 1.0);
  if (view.rows == 0) return norms;
  const low_rank::Dense values = low_rank::read(adapter::bind(*plan.sources[view.source], view));
  std::fill(norms.begin(), norms.end(), 0.0);
  for (std::int64_t j = 0; j < values.cols; ++j) {
    for (std::int64_t i = 0; i < values.rows; ++i)
      norms[static_cast<std::size_t>(i)] += values.at(i, j) * values.at(i, j);
  }
  for (double& norm : norms) norm = std::sqrt(norm);
  return norms;
}

// What the sums of a plan's updates may lose in fp32, for a run of rows of a tensor.
struct Slack {
  std::vector<double>
      of_sums;  // |s| (rank + 4) 2^-24 |b_i| |a_j|, over all updates: the error of a sum of that rank in fp32
  std::vector<double> magnitude;  // |s| |b_i| |a_j|: no delta is larger (Cauchy and Schwarz)
};
// Norms of the rows of b and of the columns of a, update by update.
class SlackOf {
 public:
  SlackOf(const Plan& plan, const PlannedTensor& tensor);
  Slack rows(std::int64_t first, std::int64_t count) const;
  std::size_t adapters() const { return adapters_; }
  bool dora() const { return dora_; }

 private:
  const PlannedTensor& tensor_;
  std::vector<std::vector<double>> b_, a_;
  std::size_t adapters_ = 0;
  bool dora_ = false;
};

enum class Fit : std::uint8_t { exact, one_rounding, two_roundings, beyond };

class Judge {
 public:
  // `result`: dtype of the merged values; `base`: what W was in before.
  Judge(Dtype result, Dtype base, const SlackOf& slack);
  Fit judge(double base, double expected, double merged, double slack, double delta_bound) const;
  double places(double expected, double merged) const;  // distance in last places of the result's dtype

 private:
  Precision result_, coarse_;
  bool narrowed_;
  double times_;     // roundings of weights that tools may do
  double relative_;  // fp32 and DoRA norms: of the value itself
};

SlackOf::SlackOf(const Plan& plan, const PlannedTensor& tensor) : tensor_(tensor) {
  if (!tensor.merge) return;
  std::set<std::uint32_t> adapters;
  for (const Update& update : tensor.merge->updates) {
    b_.push_back(row_norms(plan, update.b, update.target.rows));
    a_.push_back(row_norms(plan, update.a.transposed(), update.target.cols));
    adapters.insert(update.adapter);
    dora_ = dora_ || update.magnitude.has_value();
  }
  adapters_ = adapters.size();
}

Slack SlackOf::rows(std::int64_t first, std::int64_t count) const {
  const auto size = static_cast<std::size_t>(count * tensor_.cols);
  Slack slack{std::vector<double>(size), std::vector<double>(size)};
  for (std::size_t u = 0; u < b_.size(); ++u) {
    const Update& update = tensor_.merge->updates[u];
    const double scale = std::abs(update.scale), loss = (static_cast<double>(update.a.rows) + 4) * kFloatRounding;
    visit_runs(update.target, tensor_.cols, first, count, [&](const ElementRun& run) {
      const double of_line = scale * (run.along_row ? b_[u] : a_[u])[static_cast<std::size_t>(run.line)];
      const std::vector<double>& across = run.along_row ? a_[u] : b_[u];
      for (std::int64_t n = 0; n < run.count; ++n) {
        const auto at = static_cast<std::size_t>(run.at + n * run.step);
        const double largest = of_line * across[static_cast<std::size_t>(run.begin + n)];
        slack.magnitude[at] += largest;
        slack.of_sums[at] += largest * loss;
      }
    });
  }
  return slack;
}

Judge::Judge(Dtype result, Dtype base, const SlackOf& slack)
    : result_(precision_of(result)),
      coarse_(precision_of(base).bits < precision_of(result).bits ? precision_of(base) : precision_of(result)),
      narrowed_(precision_of(result).bits < precision_of(base).bits),
      // Two DoRA adapters in PEFT: the first is taken out, put back and followed by the second.
      times_(static_cast<double>(std::max<std::size_t>(1, slack.adapters())) *
             (slack.dora() && slack.adapters() > 1 ? 4 : 1)),
      relative_(precision_of(result).bits < 24 || slack.dora() ? (slack.dora() ? 16 : 1) * kFloatRounding : 0) {}

Fit Judge::judge(double base, double expected, double merged, double slack, double delta_bound) const {
  const double distance = std::abs(merged - expected);
  const double largest = std::max(std::abs(expected), std::abs(merged));
  const double half = last_place(result_, largest) / 2;
  if (distance <= half) return Fit::exact;
  const double lost = slack + relative_ * (largest + std::abs(base));
  if (distance <= half + lost) return Fit::one_rounding;
  const double delta = times_ > 1 ? delta_bound : std::abs(expected - base);
  const double reached =
      times_ > 1 ? std::max(largest, std::abs(base)) + delta_bound : std::max(largest, std::abs(base));
  double allowed = lost + times_ * (last_place(coarse_, reached) + last_place(coarse_, delta)) / 2;
  if (narrowed_) allowed += last_place(result_, base) / 2;  // the base was cast before
  return distance <= allowed ? Fit::two_roundings : Fit::beyond;
}

double Judge::places(double expected, double merged) const {
  return std::abs(merged - expected) / last_place(result_, std::max(std::abs(expected), std::abs(merged)));
}

void count(MergeBounds& bounds, Fit fit) {
  switch (fit) {
    case Fit::exact:
      ++bounds.exact;
      break;
    case Fit::one_rounding:
      ++bounds.one_rounding;
      break;
    case Fit::two_roundings:
      ++bounds.two_roundings;
      break;
    case Fit::beyond:
      ++bounds.beyond;
      break;
  }
}

class TensorComparison {
 public:
  TensorComparison(const ExpectedTensor& expected, const MergedModel& merged, const Counterpart& counterpart)
      : expected_(expected),
        planned_(expected.planned()),
        merged_(merged),
        counterpart_(counterpart),
        evaluator_(expected.merge->plan, expected.file, expected.tensor),
        slack_(expected.merge->plan, planned_),
        judge_(counterpart.dtype, planned_.merge ? planned_.merge->base_dtype : planned_.dtype, slack_),
        precision_(precision_of(counterpart.dtype)),
        sums_(empty_sums(expected)) {}

  std::vector<MatrixSums> run() {
    const std::int64_t rows = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, planned_.cols));
    for (std::int64_t first = 0; first < planned_.rows; first += rows)
      chunk(first, std::min(rows, planned_.rows - first));
    return std::move(sums_);
  }

 private:
  // One for each site, and one for the elements of no site.
  static std::vector<MatrixSums> empty_sums(const ExpectedTensor& expected) {
    std::vector<MatrixSums> sums(expected.sites.size() + 1);
    for (std::size_t i = 0; i < expected.sites.size(); ++i) sums[i].site = expected.sites[i].first;
    return sums;
  }

  void chunk(std::int64_t first, std::int64_t rows) {
    const auto base = evaluator_.base(first, rows), wanted = planned_.merge ? evaluator_.merged(first, rows) : base;
    const Slack slack = slack_.rows(first, rows);
    merged_.read(counterpart_, planned_, first, rows, values_, known_);
    group_.assign(base.size(), static_cast<std::uint32_t>(expected_.sites.size()));
    for (std::size_t s = 0; s < expected_.sites.size(); ++s) {
      visit_runs(expected_.sites[s].second, planned_.cols, first, rows, [&](const ElementRun& run) {
        for (std::int64_t n = 0; n < run.count; ++n)
          group_[static_cast<std::size_t>(run.at + n * run.step)] = static_cast<std::uint32_t>(s);
      });
    }
    for (std::size_t i = 0; i < base.size(); ++i) {
      if (known_[i] != 0) add(sums_[group_[i]], base[i], wanted[i], values_[i], slack.of_sums[i], slack.magnitude[i]);
    }
  }

  void add(MatrixSums& sums, double base, double wanted, double found, double slack, double delta_bound) {
    ++sums.elements;
    if (!std::isfinite(found)) {
      if (std::bit_cast<std::uint64_t>(found) == std::bit_cast<std::uint64_t>(wanted))
        return count(sums.bounds, Fit::exact);
      return count(sums.bounds, Fit::beyond);
    }
    count(sums.bounds, judge_.judge(base, wanted, found, slack, delta_bound));
    const double change = found - base, delta = wanted - base, place = last_place(precision_, found);
    sums.base += base * base;
    sums.change += change * change;
    sums.delta += delta * delta;
    sums.product += change * delta;
    sums.error += (found - wanted) * (found - wanted);
    sums.noise += place * place / 12;
    sums.unchanged += std::abs(change) <= last_place(precision_, base) / 2 ? 1 : 0;
    sums.worst_places = std::max(sums.worst_places, judge_.places(wanted, found));
  }

  const ExpectedTensor& expected_;
  const PlannedTensor& planned_;
  const MergedModel& merged_;
  const Counterpart& counterpart_;
  Evaluator evaluator_;
  SlackOf slack_;
  Judge judge_;
  Precision precision_;
  std::vector<MatrixSums> sums_;
  std::vector<double> values_;
  std::vector<char> known_;
  std::vector<std::uint32_t> group_;
};

// The multiples of several deltas that explain D best: gram[i][j] = <Delta_i, Delta_j>, right[i] = <D, Delta_i>. Empty
// where the deltas do not tell.
std::vector<double> solve(std::vector<std::vector<double>> gram, std::vector<double> right) {
  const std::size_t n = right.size();
  double largest = 0;
  for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, gram[i][i]);
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < n; ++i) pivot = std::abs(gram[i][k]) > std::abs(gram[pivot][k]) ? i : pivot;
    if (std::abs(gram[pivot][k]) <= 1e-9 * largest) return {};
    std::swap(gram[k], gram[pivot]);
    std::swap(right[k], right[pivot]);
    for (std::size_t i = k + 1; i < n; ++i) {
      const double times = gram[i][k] / gram[k][k];
      for (std::size_t j = k; j < n; ++j) gram[i][j] -= times * gram[k][j];
      right[i] -= times * right[k];
    }
  }
  for (std::size_t k = n; k-- > 0;) {
    for (std::size_t j = k + 1; j < n; ++j) right[k] -= gram[k][j] * right[j];
    right[k] /= gram[k][k];
  }
  return right;
}

const ExpectedTensor* named(const std::vector<ExpectedTensor>& tensors, const std::string& name) {
  const auto at =
      std::find_if(tensors.begin(), tensors.end(), [&](const ExpectedTensor& t) { return t.planned().name == name; });
  return at == tensors.end() ? nullptr : &*at;
}

using Kind = MergedDifference::Kind;

constexpr double kClose = 0.03;  // of a factor, or of a residual: what counts as the same

double root_ratio(double x, double y) { return y > 0 ? std::sqrt(std::max(0.0, x) / y) : 0; }

MergedDifference changed(const MatrixSums& sums, MergedDifference difference) {
  difference.kind = Kind::changed;
  difference.relative = root_ratio(sums.error, sums.base);
  difference.what = fmt::format("{} of {} elements are not those of the base, and no adapter touches them",
                                sums.bounds.beyond, sums.elements);
  return difference;
}

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const MergePlan& merge) {
  std::vector<ExpectedTensor> tensors;
  std::map<std::pair<std::size_t, std::size_t>, std::size_t> numbers;
  for (std::size_t f = 0; f < merge.plan.files.size(); ++f) {
    for (std::size_t t = 0; t < merge.plan.files[f].tensors.size(); ++t) {
      numbers[{f, t}] = tensors.size();
      tensors.push_back({&merge, f, t, {}, false});
    }
  }
  for (const MergedPart& part : merge.parts) {
    ExpectedTensor& tensor = tensors[numbers.at({part.file, part.tensor})];
    tensor.replaced |= part.update < 0;
    if (part.update < 0) continue;
    const View& target = tensor.planned().merge->updates[static_cast<std::size_t>(part.update)].target;
    const bool known =
        std::any_of(tensor.sites.begin(), tensor.sites.end(), [&](const auto& site) { return site.second == target; });
    if (!known) tensor.sites.emplace_back(part.site, target);
  }
  return tensors;
}

std::vector<MatrixSums> compare_tensor(const ExpectedTensor& expected, const MergedModel& merged,
                                       const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  if (same_copy(expected, merged, counterpart)) return {};
  if (!is_float(counterpart.dtype) || !is_float(planned.dtype)) {  // numbers that nothing is computed with
    MatrixSums sums;
    sums.elements = sums.bounds.beyond = static_cast<std::uint64_t>(planned.rows * planned.cols);
    return {sums};
  }
  return TensorComparison(expected, merged, counterpart).run();
}

std::vector<double> factors_of(const std::string& tensor, const Site& site, std::span<const MergePlan> alone,
                               const ExpectedTensor& expected, const MergedModel& merged,
                               const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  const auto place =
      std::find_if(expected.sites.begin(), expected.sites.end(), [&](const auto& s) { return s.first == site; });
  if (place == expected.sites.end()) return {};
  const std::size_t n = alone.size();
  std::vector<std::vector<double>> gram(n, std::vector<double>(n));
  std::vector<double> right(n);
  std::vector<std::optional<Evaluator>> evaluators(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto tensors = expected_tensors(alone[i]);
    const ExpectedTensor* found = named(tensors, tensor);
    if (found != nullptr && found->planned().merge) evaluators[i].emplace(alone[i].plan, found->file, found->tensor);
  }
  const std::int64_t rows = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, planned.cols));
  std::vector<double> values;
  std::vector<char> known;
  const Evaluator whole(expected.merge->plan, expected.file, expected.tensor);
  for (std::int64_t first = 0; first < planned.rows; first += rows) {
    const std::int64_t count = std::min(rows, planned.rows - first);
    const auto base = whole.base(first, count);
    merged.read(counterpart, planned, first, count, values, known);
    std::vector<std::vector<double>> deltas(n, std::vector<double>(base.size()));
    for (std::size_t i = 0; i < n; ++i) {
      if (!evaluators[i]) continue;
      deltas[i] = evaluators[i]->merged(first, count);
      for (std::size_t k = 0; k < base.size(); ++k) deltas[i][k] -= base[k];
    }
    visit_runs(place->second, planned.cols, first, count, [&](const ElementRun& run) {
      for (std::int64_t m = 0; m < run.count; ++m) {
        const auto at = static_cast<std::size_t>(run.at + m * run.step);
        if (known[at] == 0) continue;
        for (std::size_t i = 0; i < n; ++i) {
          right[i] += (values[at] - base[at]) * deltas[i][at];
          for (std::size_t j = 0; j < n; ++j) gram[i][j] += deltas[i][at] * deltas[j][at];
        }
      }
    });
  }
  return solve(std::move(gram), std::move(right));
}

std::string factor_text(double factor) {
  if (std::abs(factor) < kClose) return "not merged";
  if (std::abs(factor - 1) < kClose) return "merged once";
  if (std::abs(factor - 2) < 2 * kClose) return "merged twice";
  if (std::abs(factor + 1) < kClose) return "subtracted";
  return fmt::format("merged {:.3g} times", factor);
}

std::optional<MergedDifference> difference_of(const MatrixSums& sums, const std::string& tensor) {
  MergedDifference difference;
  difference.tensor = sums.site ? describe(*sums.site) : tensor;
  difference.site = sums.site;
  difference.elements = sums.bounds.beyond;
  if (sums.delta == 0) {
    if (sums.bounds.beyond == 0) return std::nullopt;
    return changed(sums, std::move(difference));
  }
  const double factor = sums.product / sums.delta;
  // What rounding alone moves the factor by: eight standard deviations.
  const double blur = 8 * root_ratio(sums.noise, static_cast<double>(sums.elements) * sums.delta);
  const bool off = sums.bounds.two_roundings > 0 && std::abs(factor - 1) > std::max(kClose, blur);
  if (sums.bounds.beyond == 0 && !off) return std::nullopt;
  difference.factor = factor;
  difference.relative = root_ratio(sums.error, sums.delta);
  if (sums.unchanged == sums.elements) {
    difference.kind = Kind::not_merged;
    difference.factor = 0;
    difference.what = "not merged: it equals the base";
    return difference;
  }
  const double residual = root_ratio(sums.change - factor * sums.product, sums.delta);
  const double explained = kClose * std::max(1.0, std::abs(factor)) + 2 * root_ratio(sums.noise, sums.delta);
  if (residual > explained) {
    difference.kind = Kind::different;
    difference.what =
        fmt::format("something else was added: {:.3g} of the delta's norm away from it", difference.relative);
  } else if (std::abs(factor - 1) <= std::max(kClose, blur)) {
    difference.kind = Kind::different;
    difference.what = fmt::format(
        "{} of {} elements are further from the exact sum than rounding explains, the worst {:.3g} last places",
        sums.bounds.beyond, sums.elements, sums.worst_places);
  } else {
    difference.kind = std::abs(factor) < std::max(kClose, blur) ? Kind::not_merged : Kind::scaled;
    difference.what = factor_text(factor);
  }
  return difference;
}

}  // namespace peft::verbs

namespace peft {

std::string_view name(MergedDifference::Kind kind) {
  constexpr std::string_view kNames[] = {"not_merged", "scaled", "different", "changed", "missing", "extra"};
  return kNames[static_cast<std::size_t>(kind)];
}

}  // namespace peft
