#include "verbs/verify/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "peft/error.h"
#include "support/adapter_maker.h"

namespace peft {
namespace {

using namespace testing;  // NOLINT: the makers of adapters

TEST(Compare, ListsTheWorstFiftyAndCountsAll) {
  Maker x, y;
  for (int e = 0; e < 60; ++e) {
    x.pair(expert_site(e, Projection::up), kA, kB);
    y.pair(expert_site(e, Projection::up), kA, kB.times(1.0 + e / 64.0));
  }
  const VerifyReport report = verify_pair(x, y);
  EXPECT_EQ(report.num_differences, 59);
  EXPECT_EQ(report.compared, 60);
  EXPECT_EQ(report.identical, 1);
  ASSERT_EQ(report.differences.size(), 50U);
  EXPECT_EQ(report.where, describe(expert_site(59, Projection::up)));
  for (int i = 0; i < 50; ++i) {
    const double factor = (59 - i) / 64.0;
    EXPECT_EQ(report.differences[i].name, describe(expert_site(59 - i, Projection::up)));
    EXPECT_NEAR(report.differences[i].relative, factor / (1 + factor), 1e-12);
  }
}

TEST(Compare, NothingIsNotTheSame) {
  Maker x, y;
  x.add(kA), y.add(kA);
  EXPECT_FALSE(verify_pair(x, y).same);
}

TEST(Compare, NotANumberIsAnErrorInEitherAdapter) {
  Dense bad = kB;
  bad.at(3, 1) = std::numeric_limits<double>::quiet_NaN();
  bad.at(9, 0) = -std::numeric_limits<double>::infinity();
  Maker x, y;
  x.pair(kDense, kA, kB), y.pair(kDense, kA, bad);
  for (const auto& run : {std::function([&] { verify_pair(x, y); }), std::function([&] { verify_pair(y, y); })}) {
    try {
      run();
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE);
      EXPECT_EQ(error.detail().tensor, "t1");
      EXPECT_EQ(error.detail().got, "1 NaN, 0 +Inf, 1 -Inf, the first at element 13");
    }
  }
}

TEST(Compare, ExtrasAreComparedByKindSiteAndSuffix) {
  const std::vector<double> values{1, 2, 3, 4.0625};
  const auto make = [&](Dtype dtype, std::vector<std::int64_t> shape, const std::vector<double>& v) {
    Maker maker;
    maker.pair(kDense, kA, kB).extra(ExtraKind::magnitude, kDense, "lora_magnitude_vector", dtype, std::move(shape), v);
    return maker;
  };
  Maker x = make(Dtype::f32, {4}, values), same = make(Dtype::f32, {4, 1}, values),
        narrow = make(Dtype::bf16, {4}, values);
  Maker finer = make(Dtype::f32, {4}, {1, 2, 3.001, 4.0625}), rounded = make(Dtype::bf16, {4}, {1, 2, 3.001, 4.0625});
  Maker longer = make(Dtype::f32, {5}, {1, 2, 3, 4.0625, 0}), integers = make(Dtype::i32, {4}, {1, 2, 3, 4});
  Maker without;
  without.pair(kDense, kA, kB);

  EXPECT_EQ(verify_pair(x, same).exactness, Exactness::bit_exact);
  EXPECT_EQ(verify_pair(x, narrow).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(finer, rounded).exactness, Exactness::rounded);
  for (Maker* y : {&finer, &longer, &integers, &without}) {
    const VerifyReport report = verify_pair(x, *y);
    EXPECT_FALSE(report.same);
    EXPECT_EQ(report.identical, 1);
    ASSERT_EQ(report.differences.size(), 1U);
    EXPECT_EQ(report.differences[0].name, describe(kDense) + ".lora_magnitude_vector");
  }
  EXPECT_NEAR(verify_pair(x, finer).largest_relative, 0.001 / std::sqrt(1 + 4 + 9.006001 + 4.0625 * 4.0625), 1e-7);
  EXPECT_EQ(verify_pair(without, x).differences[0].what, "only in the second adapter");
}

TEST(Compare, TheReportDoesNotDependOnTheThreads) {
  const ExpertPairs experts(6, 3, 40, 50);
  Maker x, y;
  for (int e = 0; e < 6; ++e) {
    Site site = expert_site(0, Projection::up);
    site.module = "model.layers." + std::to_string(e) + ".mlp.experts";
    x.pair(site, experts.a[e], experts.b[e]);
    y.pair(site, experts.a[e], experts.b[(e + 1) % 6]);
  }
  VerifyOptions options;
  options.threads = 1;
  const VerifyReport one = verbs::compare(x.input(), y.input(), options);
  options.threads = 7;
  const VerifyReport many = verbs::compare(x.input(), y.input(), options);
  ASSERT_EQ(one.differences.size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(one.differences[i].name, many.differences[i].name);
    EXPECT_EQ(one.differences[i].relative, many.differences[i].relative);
  }
}
}  // namespace
}  // namespace peft
