#include "low_rank/operators.h"

#include <algorithm>
#include <cmath>

namespace peft::low_rank {
namespace {

std::uint64_t mix(std::uint64_t z) {  // splitmix64's finisher
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

double sign(double v) { return v > 0 ? 1 : v < 0 ? -1 : 0; }

// The mean of the weighted values that have the elected sign; the sign is elected by the values without weights.
double elect(std::span<const Dense> matrices, std::span<const double> weights, std::size_t at, bool by_count) {
  double votes = 0;
  for (const Dense& m : matrices) votes += by_count ? sign(m.values[at]) : m.values[at];
  const double elected = votes >= 0 ? 1 : -1;
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    if (sign(matrices[i].values[at]) != elected) continue;
    sum += matrices[i].values[at] * weights[i];
    count += 1;
  }
  return sum / std::max(count, 1.0);
}

}  // namespace

void prune_by_magnitude(Dense& m, double density) {
  const auto n = static_cast<std::int64_t>(m.values.size());
  const auto keep = static_cast<std::int64_t>(density * static_cast<double>(n));
  if (density >= 1 || keep >= n) return;
  if (keep <= 0) return std::fill(m.values.begin(), m.values.end(), 0.0);
  std::vector<double> magnitudes(m.values.size());
  std::transform(m.values.begin(), m.values.end(), magnitudes.begin(), [](double v) { return std::abs(v); });
  std::nth_element(magnitudes.begin(), magnitudes.begin() + (keep - 1), magnitudes.end(), std::greater<>());
  const double least = magnitudes[static_cast<std::size_t>(keep - 1)];
  std::int64_t of_least =
      keep - std::count_if(m.values.begin(), m.values.end(), [least](double v) { return std::abs(v) > least; });
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.cols; ++j) {
      double& v = m.at(i, j);
      const bool kept = std::abs(v) > least || (std::abs(v) == least && of_least-- > 0);
      if (!kept) v = 0;
    }
  }
}

void prune_at_random(Dense& m, double density, std::uint64_t seed, std::uint64_t stream) {
  if (density >= 1) return;
  const std::uint64_t key = mix(seed + 0x9e3779b97f4a7c15) ^ stream;
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.cols; ++j) {
      const auto index = static_cast<std::uint64_t>(i * m.cols + j);
      const double uniform = static_cast<double>(mix(key + (index + 1) * 0x9e3779b97f4a7c15) >> 11) * 0x1p-53;
      double& v = m.at(i, j);
      v = uniform < density ? v / density : 0;
    }
  }
}

std::uint64_t stream_of(std::string_view name, std::uint64_t index) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return mix(hash + index * 0x9e3779b97f4a7c15);
}

Dense apply(Operator op, std::vector<Dense> matrices, std::span<const double> weights, const OperatorOptions& options,
            std::span<const std::uint64_t> streams) {
  const bool by_magnitude = op == Operator::magnitude_prune || op == Operator::ties;
  const bool at_random = op == Operator::dare_linear || op == Operator::dare_ties;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    if (by_magnitude) prune_by_magnitude(matrices[i], options.density);
    if (at_random) prune_at_random(matrices[i], options.density, options.seed, streams[i]);
  }
  Dense result(matrices.front().rows, matrices.front().cols);
  const bool elects = op == Operator::ties || op == Operator::dare_ties;
  for (std::size_t at = 0; at < result.values.size(); ++at) {
    if (elects) {
      result.values[at] = elect(matrices, weights, at, options.majority_by_count);
      continue;
    }
    for (std::size_t i = 0; i < matrices.size(); ++i) result.values[at] += matrices[i].values[at] * weights[i];
  }
  return result;
}

}  // namespace peft::low_rank
