#include "verbs/extract_unit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "peft/error.h"
#include "verbs/last_place.h"

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

void add_columns(Difference& difference, const UnitWeights& weights, std::size_t site, const Dense& before,
                 const Dense& after, std::int64_t first, Dtype base_dtype, Dtype dtype) {
  const Precision precision = precision_of(dtype);
  const bool narrower = precision.bits < precision_of(base_dtype).bits;
  const std::int64_t row0 = weights.unit.first_row(site), step = weights.unit.row_step();
  for (std::int64_t j = 0; j < before.cols; ++j) {
    for (std::int64_t i = 0; i < before.rows; ++i) {
      const double delta = after.at(i, j) - before.at(i, j), ulp = last_place(precision, after.at(i, j));
      if (!std::isfinite(delta)) {
        throw Error(ErrorCode::NUM_NONFINITE,
                    {.tensor = weights.unit.name(), .problem = "NaN or infinity in one of the models"});
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
Dtype value_dtype(const WeightsOf& side, const Weight& weight) {
  return weight.parts.front().scales ? Dtype::f32 : side.info(weight).dtype;
}

Difference read_difference(const UnitWeights& weights, const WeightsOf& base, const WeightsOf& finetuned) {
  const std::int64_t rows = weights.unit.rows();
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

ExtractedUnit extract_unit(const UnitWeights& weights, const WeightsOf& base, const WeightsOf& finetuned,
                           std::int64_t rank, Dtype dtype) {
  Difference difference = read_difference(weights, base, finetuned);
  ExtractedUnit result;
  if (difference.explained) return result;
  result.norm = low_rank::norm(difference.values);
  low_rank::Spectrum spectrum = low_rank::spectrum_of(difference.values, rank);
  const std::int64_t kept =
      std::max<std::int64_t>(1, low_rank::numerical_rank(spectrum, rank, noise_floor(difference)));
  result.pair = store(weights.unit, low_rank::split(std::move(spectrum), kept), dtype);
  result.error = low_rank::residual_norm(difference.values, result.pair->values);
  return result;
}

std::uint64_t memory_of(const UnitWeights& weights) {
  const auto out = static_cast<std::uint64_t>(weights.unit.rows()), in = static_cast<std::uint64_t>(weights.in);
  return 10 * out * in + 64 * 64 * (out + in);
}

}  // namespace peft::verbs
