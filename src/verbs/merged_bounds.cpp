#include "verbs/merged_bounds.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "adapter/view_math.h"
#include "verbs/merged_values.h"

namespace peft::verbs {
namespace {

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

}  // namespace

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
    visit_runs(update.target, tensor_.cols, first, count, [&](const Run& run) {
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

}  // namespace peft::verbs
