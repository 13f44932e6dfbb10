#include "verbs/merged_blame.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace peft::verbs {
namespace {

constexpr double kClose = 0.03;  // of a factor, or of a residual: what counts as the same

double root_ratio(double x, double y) { return y > 0 ? std::sqrt(std::max(0.0, x) / y) : 0; }

MergedDifference changed(const MatrixSums& sums, MergedDifference difference) {
  difference.kind = "changed";
  difference.relative = root_ratio(sums.error, sums.base);
  difference.what = fmt::format("{} of {} elements are not those of the base, and no adapter touches them",
                                sums.bounds.beyond, sums.elements);
  return difference;
}

}  // namespace

std::string factor_text(double factor) {
  if (std::abs(factor) < kClose) return "not merged";
  if (std::abs(factor - 1) < kClose) return "merged once";
  if (std::abs(factor - 2) < 2 * kClose) return "merged twice";
  if (std::abs(factor + 1) < kClose) return "subtracted";
  return fmt::format("merged {:.3g} times", factor);
}

std::optional<MergedDifference> blame(const MatrixSums& sums, const std::string& tensor) {
  MergedDifference difference;
  difference.tensor = sums.site.empty() ? tensor : sums.site;
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
    difference.kind = "not_merged";
    difference.factor = 0;
    difference.what = "not merged: it equals the base";
    return difference;
  }
  const double residual = root_ratio(sums.change - factor * sums.product, sums.delta);
  const double explained = kClose * std::max(1.0, std::abs(factor)) + 2 * root_ratio(sums.noise, sums.delta);
  if (residual > explained) {
    difference.kind = "different";
    difference.what =
        fmt::format("something else was added: {:.3g} of the delta's norm away from it", difference.relative);
  } else if (std::abs(factor - 1) <= std::max(kClose, blur)) {
    difference.kind = "different";
    difference.what = fmt::format(
        "{} of {} elements are further from the exact sum than rounding explains, the worst {:.3g} last places",
        sums.bounds.beyond, sums.elements, sums.worst_places);
  } else {
    difference.kind = std::abs(factor) < std::max(kClose, blur) ? "not_merged" : "scaled";
    difference.what = factor_text(factor);
  }
  return difference;
}

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

}  // namespace peft::verbs
