// Merged tensors against an oracle in fp64, in every mode, shape and dtype, however they are cut.
#include "execute/merge/merger.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>

#include "execute/run/unit_renderer.h"
#include "execute/values/element.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "support/every_target.h"
#include "support/random_merge.h"

namespace peft::execution {
namespace {

std::vector<std::byte> image_of(const Plan& plan, const CutSizes& sizes) {
  const FileWork work = make_work(plan, plan.files[0], sizes);
  std::vector<std::byte> image(work.layout.data_bytes);
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  for (const Unit& unit : work.units) {
    for (const FileExtent& extent : renderer.make(work, unit)) {
      std::uint64_t at = extent.offset;
      for (const iovec& part : extent.parts) {
        std::memcpy(image.data() + at, part.iov_base, part.iov_len);
        at += part.iov_len;
      }
    }
  }
  return image;
}

std::vector<CutSizes> cuts() { return {{}, {400'000, 37, 10}, {400'000, 1200, 10}}; }

double step_of(Dtype dtype, double value) {  // distance to the next representable value
  std::byte bytes[8];
  store_element(dtype, std::fabs(value), bytes);
  std::uint64_t bits = 0;
  std::memcpy(&bits, bytes, static_cast<std::size_t>(info(dtype).bits) / 8);
  const double low = load_element(dtype, bytes);
  ++bits;
  std::memcpy(bytes, &bits, sizeof bits);
  return load_element(dtype, bytes) - low;
}

double once(Dtype dtype, double value) {
  std::byte bytes[8];
  store_element(dtype, value, bytes);
  return load_element(dtype, bytes);
}

std::vector<double> values_of(const Plan& plan, const PlannedTensor& tensor, const std::vector<std::byte>& image,
                              std::size_t t) {
  const FileWork work = make_work(plan, plan.files[0]);
  std::vector<double> values;
  const std::int64_t size = info(tensor.dtype).bits / 8;
  for (std::int64_t i = 0; i < tensor.rows * tensor.cols; ++i)
    values.push_back(
        load_element(tensor.dtype, image.data() + work.layout.begin[t] + static_cast<std::uint64_t>(i * size)));
  return values;
}

struct Difference {
  std::size_t different = 0;
  double most = 0;  // in last places of the right value, or of one as large as `least`
};

Difference compare(const Plan& plan, const std::vector<std::byte>& image, bool exact, double least = 0) {
  Difference result;
  for (std::size_t t = 0; t < plan.files[0].tensors.size(); ++t) {
    const PlannedTensor& tensor = plan.files[0].tensors[t];
    const std::vector<double> right = oracle(plan, tensor, exact), got = values_of(plan, tensor, image, t);
    for (std::size_t i = 0; i < right.size(); ++i) {
      const double want = once(tensor.dtype, once(tensor.merge->base_dtype, right[i]));
      if (want == got[i]) continue;
      ++result.different;
      const double size = std::max(least, std::min(std::fabs(want), std::fabs(got[i])));
      const double step = std::max(step_of(tensor.dtype, size), step_of(tensor.merge->base_dtype, size));
      result.most = std::max(result.most, std::fabs(want - got[i]) / step);
    }
  }
  return result;
}

std::vector<MergeCase> cases(MergeMode mode) {
  std::vector<MergeCase> all;
  for (const Dtype base : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
    for (const Dtype adapter : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      all.push_back({.mode = mode, .source = base, .base = base, .out = base, .adapter = adapter});
    }
    all.push_back({.mode = mode, .source = base, .base = base, .out = base, .adapters = 2, .delta_size = 1});
    all.push_back({.mode = mode, .source = Dtype::f32, .base = base, .out = base});
    all.push_back({.mode = mode, .source = base, .base = base, .out = Dtype::f32, .adapters = 3});
    all.push_back({.mode = mode, .source = Dtype::f32, .base = base, .out = Dtype::bf16});
  }
  return all;
}

std::string text(const MergeCase& c, int shape, std::uint32_t seed) {
  return fmt::format("shape {}, seed {}, mode {}, source {}, base {}, out {}, adapter {}, {} adapters, dora {}", shape,
                     seed, static_cast<int>(c.mode), info(c.source).name, info(c.base).name, info(c.out).name,
                     info(c.adapter).name, c.adapters, c.dora);
}

Plan plan_of(PlanBuilder& builder, int shape, std::int64_t size, const MergeCase& c) {
  add_merge(builder, shape, "w", size, c);
  return builder.make();
}

TEST(Merge, BestIsTheExactSumRoundedOnceUpToOnePlace) {
  for (int shape = 0; shape < num_merge_shapes(); ++shape) {
    for (MergeCase c : cases(MergeMode::best)) {
      for (const bool dora : {false, true}) {
        for (std::uint32_t seed = 0; seed < 4; ++seed) {
          c.dora = dora;
          PlanBuilder builder(seed);
          const Plan plan = plan_of(builder, shape, seed < 2 ? 20 : 150, c);
          const Difference found = compare(plan, image_of(plan, {}), true);
          const double allowed = c.base == Dtype::f32 ? 0 : 1;
          ASSERT_LE(found.most, allowed) << text(c, shape, seed) << ", " << found.different << " different";
        }
      }
    }
  }
}

// W and the delta take each other away: what is left has few bits of a sum in fp32.
TEST(Merge, BestKeepsTheLastPlaceWhereTheSumCancels) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
    for (int shape : {0, 1, 5}) {
      PlanBuilder builder(11);
      const Plan plan = plan_of(builder, shape, 700,
                                {.source = dtype, .base = dtype, .out = dtype, .base_sigma = 1, .delta_size = 3});
      EXPECT_LE(compare(plan, image_of(plan, {}), true).most, 1) << info(dtype).name << " shape " << shape;
    }
  }
}

// bf16 factors whose products and sums are at the lower end of what fp32 can hold.
TEST(Merge, BestOfTinyNumbers) {
  for (const double sigma : {1e-20, 1e-30, 1e-36}) {
    PlanBuilder builder(4);
    const Plan plan = plan_of(builder, 2, 150, {.adapter = Dtype::bf16, .base_sigma = sigma});
    EXPECT_LE(compare(plan, image_of(plan, {}), true).most, 1) << sigma;
  }
}

TEST(Merge, PeftModesAreTheRoundingsOfPeft) {
  for (const MergeMode mode : {MergeMode::peft, MergeMode::peft_safe}) {
    for (int shape = 0; shape < num_merge_shapes(); ++shape) {
      for (MergeCase c : cases(mode)) {
        for (std::uint32_t seed = 0; seed < 4; ++seed) {
          c.delta_is_rounded = seed % 2 == 1;
          PlanBuilder builder(seed);
          const Plan plan = plan_of(builder, shape, seed < 2 ? 20 : 150, c);
          ASSERT_EQ(compare(plan, image_of(plan, {}), false).different, 0u) << text(c, shape, seed);
        }
      }
    }
  }
}

// Its norms are sums in fp32 whose order is not ours to know.
TEST(Merge, PeftModesOfDoraAreTheRoundingsOfPeftButForTheNorms) {
  for (int shape = 0; shape + 1 < num_merge_shapes(); ++shape) {
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      for (const int adapters : {1, 2, 3}) {
        PlanBuilder builder(static_cast<std::uint32_t>(shape));
        const MergeCase c{
            .mode = MergeMode::peft, .source = dtype, .base = dtype, .out = dtype, .adapters = adapters, .dora = true};
        const Plan plan = plan_of(builder, shape, 60, c);
        const Difference found = compare(plan, image_of(plan, {}), false, c.base_sigma);
        const double allowed = (dtype == Dtype::f32 ? 12 : 1) * adapters;
        EXPECT_LE(found.most, allowed) << text(c, shape, 0) << ", " << found.different << " different";
      }
    }
  }
}

TEST(Merge, BytesDoNotDependOnHowTheFileIsCut) {
  for (const MergeMode mode : {MergeMode::best, MergeMode::peft, MergeMode::fast}) {
    for (int shape = 0; shape < num_merge_shapes(); ++shape) {
      for (const bool dora : {false, true}) {
        PlanBuilder builder(5);
        const Plan plan = plan_of(builder, shape, 90, {.mode = mode, .adapters = 2, .dora = dora, .delta_size = 1});
        const auto whole = image_of(plan, cuts()[0]);
        for (const CutSizes& sizes : cuts()) {
          EXPECT_TRUE(image_of(plan, sizes) == whole)
              << "shape " << shape << " mode " << static_cast<int>(mode) << " dora " << dora;
        }
        const auto in_memory = execute_in_memory(plan)[0];
        EXPECT_EQ(std::memcmp(in_memory.data() + in_memory.size() - whole.size(), whole.data(), whole.size()), 0)
            << shape;
      }
    }
  }
}

class MergeOnTarget : public EveryTarget {
 protected:
  void SetUp() override {}  // a test says when
};

TEST_P(MergeOnTarget, MakesTheSameBytes) {
  for (const MergeMode mode : {MergeMode::best, MergeMode::peft_safe}) {
    for (const Dtype base : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      for (const Dtype adapter : {Dtype::bf16, Dtype::f32}) {
        for (int shape = 0; shape < num_merge_shapes(); ++shape) {
          MergeCase c{.mode = mode,
                      .source = base,
                      .base = base,
                      .out = base,
                      .adapter = adapter,
                      .dora = shape % 2 == 1,
                      .delta_size = 1};
          if (base == Dtype::f32)
            c.base_sigma = adapter == Dtype::f32 ? 1e-30 : 1e-36,
            c.dora = false;  // products below the smallest normal number
          PlanBuilder builder(3);
          const Plan plan = plan_of(builder, shape, 80, c);
          use(0);
          const auto usual = image_of(plan, {});
          use(GetParam());
          EXPECT_TRUE(image_of(plan, {}) == usual) << text(c, shape, 3);
        }
      }
    }
  }
}
// A result between the limits that two orders of adding squares give: 1 + 2^-8, and 2^-24 more again and again, which
// is lost one at a time and kept two at a time. The chain loses as much: mended or not, the element is another number.
TEST_P(MergeOnTarget, MakesTheSameBytesAtTheLimitOfWhatIsMended) {
  constexpr std::int64_t kRank = 64, kCols = 64;
  std::vector<double> left(kRank, 0x1p-12), right(kRank * kCols, 0.0), weights(kCols, 0.0);
  left[0] = 1, left[1] = 0x1p-4;
  float one = 0, two = 0;
  for (std::size_t k = 0; k < left.size(); k += 2) {
    const auto first = static_cast<float>(left[k]), second = static_cast<float>(left[k + 1]);
    one = one + first * first, one = one + second * second;
    two += first * first + second * second;
  }
  const float low = std::sqrt(one), high = std::sqrt(two), value = 1.25F * 0x1p-13F;
  ASSERT_LT(low, high);
  // Column 5 is 1 + value in the chain. The first column has the panel's norm, built up until the limit is where it is
  // wanted.
  right[5] = 1, right[kCols + 5] = 0x1p-9 * 1.25, weights[5] = -1;
  for (std::size_t k = 2; k < kRank; ++k) right[k * kCols + 5] = 0x1p-13 * 1.75;
  double square = static_cast<double>(value) / 0x1p-13 / (0.5 * (static_cast<double>(low) + static_cast<double>(high)));
  square *= square;
  float sum = 0;
  for (std::size_t k = 0; k < 16; k += 2) {
    const double least = std::sqrt(std::max(0.0, square - static_cast<double>(sum)));
    double entry = once(Dtype::bf16, least);
    if (entry > least) entry = once(Dtype::bf16, least * (1 - 0x1p-8));
    right[k * kCols] = entry;
    sum += static_cast<float>(entry) * static_cast<float>(entry);
  }
  const float panel = std::sqrt(sum);
  ASSERT_LE(low * (panel * 0x1p-13F), value);
  ASSERT_GT(high * (panel * 0x1p-13F), value);

  for (const Dtype adapter : {Dtype::bf16, Dtype::f32}) {
    PlanBuilder builder(1);
    const View base = builder.values(Dtype::bf16, 1, kCols, weights);
    PlannedTensor& tensor = builder.output("w", Dtype::bf16, 1, kCols);
    tensor.blocks.push_back({0, 0, 1, base, 1.0});
    tensor.merge = Merge{MergeMode::best, Dtype::bf16, {}};
    Update update;
    update.target = View{0, 0, 0, 1, kCols, kCols, 1};
    update.a = builder.values(adapter, kRank, kCols, right);
    update.b = builder.values(adapter, 1, kRank, left);
    update.scale = 1;
    tensor.merge->updates.push_back(update);
    const Plan plan = builder.make();
    use(GetParam());
    const double got = values_of(plan, plan.files[0].tensors[0], image_of(plan, {}), 0)[5];
    EXPECT_EQ(got, once(Dtype::bf16, oracle(plan, plan.files[0].tensors[0], true)[5])) << info(adapter).name;
    EXPECT_NE(got, once(Dtype::bf16, static_cast<double>(value))) << "of the chain";
  }
}

// Products below the smallest normal number, which pair products would take for zero, of a side that has too small
// factors and one that has not.
TEST_P(MergeOnTarget, KeepsSubnormalProducts) {
  constexpr std::int64_t kRank = 8, kCols = 2 * static_cast<std::int64_t>(kPanel);
  for (const bool left_is_small : {false, true}) {
    const double small = 0x1p-80, large = 0x1p-50;
    PlanBuilder builder(1);
    const View base = builder.values(Dtype::bf16, 1, kCols, std::vector<double>(kCols, 0x1p-124));
    PlannedTensor& tensor = builder.output("w", Dtype::bf16, 1, kCols);
    tensor.blocks.push_back({0, 0, 1, base, 1.0});
    tensor.merge = Merge{MergeMode::best, Dtype::bf16, {}};
    Update update;
    update.target = View{0, 0, 0, 1, kCols, kCols, 1};
    std::vector<double> left(kRank, left_is_small ? small : large), right(kRank * kCols, left_is_small ? large : small);
    for (std::size_t i = 0; i < right.size(); ++i) right[i] *= i % 3 == 0 ? -1 : 1;
    update.a = builder.values(Dtype::bf16, kRank, kCols, right);
    update.b = builder.values(Dtype::bf16, 1, kRank, left);
    update.scale = 1;
    tensor.merge->updates.push_back(update);
    const Plan plan = builder.make();
    use(GetParam());
    EXPECT_EQ(compare(plan, image_of(plan, {}), true).different, 0u) << (left_is_small ? "left" : "right");
  }
}

INSTANTIATE_TEST_SUITE_P(Hwy, MergeOnTarget, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

TEST(Merge, FastIsMeasured) {
  PlanBuilder builder(2);
  const Plan plan = plan_of(builder, 0, 9000, {.mode = MergeMode::fast, .adapter = Dtype::bf16});
  const PlannedTensor& tensor = plan.files[0].tensors[0];
  MergeStores stores;
  Merger merger(stores);
  std::vector<std::byte> out(static_cast<std::size_t>(tensor.rows * tensor.cols * 2));
  merger.render(plan, tensor, false, {0, tensor.rows, 0, tensor.cols}, out.data());
  EXPECT_GT(merger.error().sampled, 0u);
  EXPECT_LE(merger.error().max_ulps, 2);
  EXPECT_LE(compare(plan, out, true).most, 2);
}

TEST(Evaluator, IsTheExactSum) {
  for (int shape = 0; shape < num_merge_shapes(); ++shape) {
    for (const bool dora : {false, true}) {
      PlanBuilder builder(8);
      const Plan plan = plan_of(builder, shape, 40, {.adapters = 2, .dora = dora});
      const PlannedTensor& tensor = plan.files[0].tensors[0];
      const std::vector<double> right = oracle(plan, tensor, true);
      const Evaluator evaluator(plan, 0, 0);
      for (std::int64_t row = 0; row < tensor.rows; row += 7) {
        const std::int64_t rows = std::min<std::int64_t>(7, tensor.rows - row);
        const std::vector<double> got = evaluator.merged(row, rows);
        for (std::size_t i = 0; i < got.size(); ++i) {
          const double want = right[static_cast<std::size_t>(row * tensor.cols) + i];
          ASSERT_NEAR(got[i], want, 1e-12 * (1 + std::fabs(want))) << "shape " << shape << " dora " << dora;
        }
      }
    }
  }
}

ErrorCode code_of(const Plan& plan, std::string& tensor) {
  try {
    image_of(plan, {});
  } catch (const Error& error) {
    tensor = error.detail().tensor;
    return error.code();
  }
  return ErrorCode::INTERNAL;
}

// A value in a source of a plan that was made.
void poke(PlanBuilder& builder, const Plan& plan, const View& view, Dtype dtype, double value) {
  const TensorFile& file = *plan.sources[0];
  const auto* at = file.bytes(file.tensors()[view.tensor]).data() + view.offset * info(dtype).bits / 8;
  store_element(dtype, value, const_cast<std::byte*>(builder.image().data() + (at - builder.image().data())));
}

TEST(Merge, NoNumberIsAnError) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
    for (const MergeMode mode : {MergeMode::best, MergeMode::peft, MergeMode::peft_safe, MergeMode::fast}) {
      for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
        for (const int where : {0, 1, 2}) {
          PlanBuilder builder(1);
          const Plan plan =
              plan_of(builder, 2, 30,
                      {.mode = mode, .source = dtype, .base = dtype, .out = dtype, .adapter = dtype, .adapters = 2});
          const PlannedTensor& tensor = plan.files[0].tensors[0];
          ASSERT_FALSE(tensor.merge->updates.empty());
          const Update& update = tensor.merge->updates[1];
          View weight{};
          for (const Block& block : tensor.blocks) {
            const std::int64_t row = update.target.offset / tensor.cols - block.row;
            if (row >= 0 && row < block.source.rows) weight = block.source.row_range(row, 1);
          }
          const View view = where == 0 ? update.a : where == 1 ? update.b : weight;
          poke(builder, plan, view, dtype, bad);
          std::string name;
          EXPECT_EQ(code_of(plan, name), ErrorCode::NUM_NONFINITE);
          EXPECT_EQ(name, plan.sources[0]->tensors()[view.tensor].name);
        }
      }
    }
  }
}

TEST(Merge, OverflowIsAnError) {
  for (const MergeMode mode : {MergeMode::best, MergeMode::peft, MergeMode::peft_safe}) {
    PlanBuilder builder(1);
    const Plan plan = plan_of(builder, 0, 40,
                              {.mode = mode,
                               .source = Dtype::f16,
                               .base = Dtype::f16,
                               .out = Dtype::f16,
                               .base_sigma = 9000,
                               .delta_size = 20});
    std::string name;
    EXPECT_EQ(code_of(plan, name), ErrorCode::NUM_OVERFLOW);
    EXPECT_EQ(name, "w");
  }
}

}  // namespace
}  // namespace peft::execution
