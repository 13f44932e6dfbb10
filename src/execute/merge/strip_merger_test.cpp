// Columns that lie apart (gate and up in turn) are merged as the same columns side by side, bit for bit.
#include "execute/merge/strip_merger.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <random>
#include <vector>

#include "execute/run/unit_renderer.h"
#include "execute/values/element.h"
#include "support/every_target.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

struct RowsCase {
  MergeMode mode;
  Dtype source, base, adapter;
  std::int64_t step;  // from a column to the next; that many matrices lie in turn, or side by side
};

constexpr std::int64_t kRows = 19, kCols = 150, kRank = 9;

std::vector<double> numbers(std::int64_t count, double sigma, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, sigma);
  std::vector<double> all(static_cast<std::size_t>(count));
  for (double& value : all) value = normal(random);
  return all;
}

// The merged matrices, one after the other. All but the last are changed.
std::vector<double> merged(const RowsCase& c, bool in_turn, const CutSizes& sizes = {}) {
  const std::int64_t width = c.step * kCols;
  const auto place = [&](std::int64_t matrix, std::int64_t row, std::int64_t col) {
    return static_cast<std::size_t>(row * width + (in_turn ? col * c.step + matrix : matrix * kCols + col));
  };
  std::vector<double> weights(static_cast<std::size_t>(kRows * width));
  for (std::int64_t m = 0; m < c.step; ++m) {
    const std::vector<double> values = numbers(kRows * kCols, 0.02, static_cast<std::uint32_t>(m));
    for (std::int64_t i = 0; i < kRows * kCols; ++i)
      weights[place(m, i / kCols, i % kCols)] = values[static_cast<std::size_t>(i)];
  }
  PlanBuilder builder(1);
  PlannedTensor& tensor = builder.output("w", c.base, kRows, width);
  tensor.blocks.push_back({0, 0, 1, builder.values(c.source, kRows, width, weights), 1.0});
  tensor.merge = Merge{c.mode, c.base, {}};
  for (std::int64_t m = 0; m + 1 < c.step; ++m) {
    Update update;  // W as [out, in], which lies the other way round
    update.target = View{0, 0, in_turn ? m : m * kCols, kCols, kRows, in_turn ? c.step : 1, width};
    const auto seed = static_cast<std::uint32_t>(100 + m);
    update.a = builder.values(c.adapter, kRank, kRows, numbers(kRank * kRows, 0.1, seed));
    update.b = builder.values(c.adapter, kCols, kRank, numbers(kCols * kRank, 0.1, seed + 50));
    update.scale = 0.75;
    tensor.merge->updates.push_back(update);
  }
  const Plan plan = builder.make();
  const FileWork work = make_work(plan, plan.files[0], sizes);
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  std::vector<std::byte> image(work.layout.data_bytes);
  for (const Unit& unit : work.units) {
    for (const execution::FileExtent& extent : renderer.make(work, unit)) {
      std::uint64_t at = extent.offset;
      for (const iovec& part : extent.parts) {
        std::copy_n(static_cast<const std::byte*>(part.iov_base), part.iov_len, image.data() + at);
        at += part.iov_len;
      }
    }
  }
  std::vector<double> values;
  for (std::int64_t m = 0; m < c.step; ++m) {
    for (std::int64_t i = 0; i < kRows * kCols; ++i) {
      values.push_back(load_element(
          c.base, image.data() + place(m, i / kCols, i % kCols) * static_cast<std::size_t>(element_size(c.base))));
    }
  }
  return values;
}

class MergeRows : public EveryTarget {};

TEST_P(MergeRows, InTurnAndSideBySideAreTheSame) {
  for (const MergeMode mode : {MergeMode::best, MergeMode::peft, MergeMode::peft_safe, MergeMode::fast}) {
    for (const Dtype base : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      for (const Dtype source : {base, Dtype::f32}) {  // as it is, or made where it is overwritten
        for (const Dtype adapter : {Dtype::bf16, Dtype::f32}) {
          for (const std::int64_t step : {2, 3}) {
            const RowsCase c{mode, source, base, adapter, step};
            const std::string what =
                fmt::format("mode {}, base {}, source {}, adapter {}, step {}", static_cast<int>(mode), info(base).name,
                            info(source).name, info(adapter).name, step);
            const std::vector<double> side_by_side = merged(c, false);
            EXPECT_EQ(merged(c, true), side_by_side) << what;
            EXPECT_EQ(merged(c, true, {.staging = 400'000, .block = 250}), side_by_side) << what << ", rows are cut";
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Hwy, MergeRows, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

}  // namespace
}  // namespace peft::execution
