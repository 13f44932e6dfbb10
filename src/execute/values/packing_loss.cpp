#include "execute/values/packing_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace peft::execution {
namespace {

constexpr int kUnit = 80;            // a unit is 2^-80
constexpr double kLargest = 0x1p46;  // that as many units as fit hold, with room for a sum
constexpr std::size_t kLanes = 8;    // independent sums, so that additions do not wait for each other

}  // namespace

void OrderlessSum::add(double value) {
  units_ += static_cast<Units>(std::ldexp(std::clamp(value, -kLargest, kLargest), kUnit));
}

double OrderlessSum::value() const { return std::ldexp(static_cast<double>(units_), -kUnit); }

void PackingLoss::add(std::size_t tensor, const PackedRows& rows, std::size_t cols) {
  Sums& sums = of_tensor_[tensor];
  for (std::size_t begin = 0; begin < rows.merged.size(); begin += cols) {
    double error[kLanes] = {}, delta[kLanes] = {}, kept[kLanes] = {};
    for (std::size_t first = begin; first < begin + cols; first += kLanes) {  // blocks are whole lanes
      for (std::size_t c = 0; c < kLanes; ++c) {
        const auto before = static_cast<double>(rows.before[first + c]),
                   merged = static_cast<double>(rows.merged[first + c]),
                   packed = static_cast<double>(rows.packed[first + c]);
        error[c] += (packed - merged) * (packed - merged);
        delta[c] += (merged - before) * (merged - before);
        kept[c] += (packed - before) * (merged - before);
      }
    }
    sums.error.add(std::accumulate(error, error + kLanes, 0.0));
    sums.delta.add(std::accumulate(delta, delta + kLanes, 0.0));
    sums.kept.add(std::accumulate(kept, kept + kLanes, 0.0));
  }
}

void PackingLoss::add(const PackingLoss& other) {
  for (const auto& [tensor, sums] : other.of_tensor_) {
    Sums& mine = of_tensor_[tensor];
    mine.error.add(sums.error);
    mine.delta.add(sums.delta);
    mine.kept.add(sums.kept);
  }
}

std::vector<PackedTensor> PackingLoss::results(std::size_t file) const {
  std::vector<PackedTensor> results;
  for (const auto& [tensor, sums] : of_tensor_) {
    const double delta = sums.delta.value();
    results.push_back(
        {file, tensor, std::sqrt(delta), std::sqrt(sums.error.value()), delta == 0 ? 0 : sums.kept.value() / delta});
  }
  return results;
}

}  // namespace peft::execution
