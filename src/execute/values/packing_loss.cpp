#include "execute/values/packing_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// A plain loop, which the compiler vectorises for each target; as in tile_math.cpp.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/values/packing_loss.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

#ifndef PEFT_PACKING_LOSS_SUMS
#define PEFT_PACKING_LOSS_SUMS
namespace peft::execution {
struct RowSums {
  double error = 0, delta = 0, kept = 0;
};
}  // namespace peft::execution
#endif

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {

constexpr std::size_t kLanes = 16;   // independent sums, so that additions do not wait for each other
constexpr std::size_t kChunk = 512;  // elements that are summed in fp32

double total(const float (&lanes)[kLanes]) { return static_cast<double>(std::accumulate(lanes, lanes + kLanes, 0.0F)); }

// Chunks of a row are summed in fp32, which is enough for a report, and then in fp64. Rows are whole blocks of 32
// elements or more.
RowSums sums_of(const float* before, const float* merged, const float* packed, std::size_t cols) {
  RowSums sums;
  for (std::size_t begin = 0; begin < cols; begin += kChunk) {
    float error[kLanes] = {}, delta[kLanes] = {}, kept[kLanes] = {};
    for (std::size_t first = begin; first < std::min(begin + kChunk, cols); first += kLanes) {
      for (std::size_t c = 0; c < kLanes; ++c) {
        const float lost = packed[first + c] - merged[first + c], added = merged[first + c] - before[first + c];
        error[c] += lost * lost;
        delta[c] += added * added;
        kept[c] += (packed[first + c] - before[first + c]) * added;
      }
    }
    sums.error += total(error);
    sums.delta += total(delta);
    sums.kept += total(kept);
  }
  return sums;
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {
namespace {

constexpr int kUnit = 80;            // a unit is 2^-80
constexpr double kLargest = 0x1p46;  // that as many units as fit hold, with room for a sum

}  // namespace

HWY_EXPORT(sums_of);

void OrderlessSum::add(double value) {
  units_ += static_cast<Units>(std::ldexp(std::clamp(value, -kLargest, kLargest), kUnit));
}

double OrderlessSum::value() const { return std::ldexp(static_cast<double>(units_), -kUnit); }

void PackingLoss::add(std::size_t tensor, const PackedRows& rows, std::size_t cols) {
  Sums& sums = of_tensor_[tensor];
  for (std::size_t begin = 0; begin < rows.merged.size(); begin += cols) {
    const RowSums row =
        HWY_DYNAMIC_DISPATCH(sums_of)(&rows.before[begin], &rows.merged[begin], &rows.packed[begin], cols);
    sums.error.add(row.error);
    sums.delta.add(row.delta);
    sums.kept.add(row.kept);
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
#endif
