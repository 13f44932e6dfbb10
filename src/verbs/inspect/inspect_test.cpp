#include "verbs/inspect/inspect.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/golden_root.h"
#include "support/test_tensors.h"

namespace peft::verbs {
namespace {

TEST(Inspect, numbers_of_a_name_become_placeholders) {
  EXPECT_EQ(pattern_of("model.layers.3.mlp.experts.17.gate_proj"),
            "model.layers.{layer}.mlp.experts.{expert}.gate_proj");
  EXPECT_EQ(pattern_of("experts.2.w1"), "experts.{expert}.w1");
  EXPECT_EQ(pattern_of("a.0.b.1"), "a.{layer}.b.{n}");
  EXPECT_EQ(pattern_of("layer1.weight"), "layer1.weight") << "a number alone between dots counts";
}

TEST(Inspect, zeros_nan_and_infinities_are_counted_in_every_float_dtype) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
    testing::Tensors tensors;
    tensors.add("mixed", dtype, {6}, {0, 1, inf, -inf, -inf, nan});
    tensors.add("zero", dtype, {2}, {0, -0.0});
    const auto file = tensors.file("adapter.safetensors");
    const ValueCounts mixed = count_values(*file, *file->find("mixed")),
                      zero = count_values(*file, *file->find("zero"));
    EXPECT_EQ(mixed.nan, 1u) << info(dtype).name;
    EXPECT_EQ(mixed.positive_infinity, 1u);
    EXPECT_EQ(mixed.negative_infinity, 2u);
    EXPECT_FALSE(mixed.all_zero);
    EXPECT_TRUE(zero.all_zero) << "-0 is zero";
  }
}

TEST(Inspect, every_tensor_is_in_one_row) {
  const auto folder = test::golden_root() / "consumers" / "mixtral" / "perexpert" / "adapter";
  InputOptions options;
  options.base = (test::golden_root() / "models" / "consumer-mixtral").string();
  const InspectReport report = inspect(folder.string(), options);
  std::int64_t count = 0;
  for (const auto& row : report.tensors) count += row.count;
  EXPECT_EQ(count, report.num_tensors);
  EXPECT_GT(report.num_tensors, 0);
  EXPECT_EQ(report.layout, Layout::peft_per_expert);
  EXPECT_TRUE(report.has_experts);
  EXPECT_EQ(report.num_experts, 12);
  EXPECT_TRUE(report.error.empty());
  for (const auto& row : report.ranks) EXPECT_EQ(row.rank, 3) << row.site;
}

}  // namespace
}  // namespace peft::verbs
