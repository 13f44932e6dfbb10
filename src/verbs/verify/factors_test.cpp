#include "verbs/verify/factors.h"

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

TEST(Compare, SameBytesAreBitExact) {
  Maker x, y;
  x.pair(kDense, kA, kB, 0.5), y.pair(kDense, kA, kB, 0.5);
  const VerifyReport report = verify_pair(x, y, false);
  EXPECT_TRUE(report.same);
  EXPECT_EQ(report.exactness, Exactness::bit_exact);
  EXPECT_EQ(report.compared, 1);
  EXPECT_EQ(report.identical, 1);
  EXPECT_EQ(report.largest_relative, 0);
  EXPECT_TRUE(report.differences.empty());
}

TEST(Compare, FusedExpertsEqualPerExpertPairsBitForBit) {
  const ExpertPairs experts(5, 3, 300, 700);
  Maker x, y;
  for (int e = 4; e >= 0; --e) x.pair(expert_site(e, Projection::down), experts.a[e], experts.b[e], 2);  // any order
  add_fused(y, experts.a, experts.b, {0, 1, 2, 3, 4});
  const VerifyReport report = verify_pair(x, y);
  EXPECT_EQ(report.exactness, Exactness::bit_exact);
  EXPECT_EQ(report.identical, 5);
  EXPECT_TRUE(report.same);
}

TEST(Compare, SwappedExpertsAreFoundAndNamed) {
  const ExpertPairs experts(5, 3, 30, 20);
  Maker x, y;
  for (int e = 0; e < 5; ++e) x.pair(expert_site(e, Projection::down), experts.a[e], experts.b[e], 2);
  add_fused(y, experts.a, experts.b, {0, 3, 2, 1, 4});
  const VerifyReport report = verify_pair(x, y);
  EXPECT_FALSE(report.same);
  EXPECT_EQ(report.exactness, Exactness::lossy);
  EXPECT_EQ(report.identical, 3);
  ASSERT_EQ(report.num_differences, 2);
  for (const VerifyDifference& difference : report.differences) {
    const int other = difference.name == describe(expert_site(1, Projection::down)) ? 3 : 1;
    EXPECT_EQ(difference.name, describe(expert_site(4 - other, Projection::down)));
    EXPECT_NE(difference.what.find("has at " + describe(expert_site(other, Projection::down))), std::string::npos);
    EXPECT_GT(difference.relative, 0.5);
  }
}

TEST(Compare, ASharedFactorIsTheSameAsItsCopies) {
  Maker x, y;
  for (int e = 0; e < 3; ++e) x.pair(expert_site(e, Projection::up), kA, kB);
  const auto a = y.add(kA), b = y.add(kB);
  View shared = whole(b, 16, 4);
  for (int e = 0; e < 3; ++e) y.factor(expert_site(e, Projection::up), whole(a, 4, 24), shared);
  EXPECT_EQ(verify_pair(x, y).exactness, Exactness::bit_exact);

  // Stride 0: one value stands for every row of B.
  Maker u, v;
  const Dense row = random_dense(1, 4, 5);
  Dense repeated(16, 4);
  for (std::int64_t i = 0; i < 16; ++i) {
    for (std::int64_t k = 0; k < 4; ++k) repeated.at(i, k) = row.at(0, k);
  }
  u.pair(kDense, kA, repeated);
  const auto ua = v.add(kA), ub = v.add(row);
  v.factor(kDense, whole(ua, 4, 24), View{0, ub, 0, 16, 4, 0, 1});
  EXPECT_EQ(verify_pair(u, v).exactness, Exactness::bit_exact);
}

// gate and up of one expert: side by side in plain pairs; in `fused` block-diagonal of rank 2r with interleaved rows.
TEST(Compare, BlockDiagonalInterleavedFormIsValueExact) {
  const Dense gate_a = random_dense(3, 20, 11), up_a = random_dense(3, 20, 12), gate_b = random_dense(10, 3, 13),
              up_b = random_dense(10, 3, 14);
  Dense a(6, 20), b(20, 6);
  for (std::int64_t k = 0; k < 3; ++k) {
    for (std::int64_t j = 0; j < 20; ++j) a.at(k, j) = gate_a.at(k, j), a.at(3 + k, j) = up_a.at(k, j);
    for (std::int64_t i = 0; i < 10; ++i) b.at(2 * i, k) = gate_b.at(i, k), b.at(2 * i + 1, 3 + k) = up_b.at(i, k);
  }
  Maker x, y;
  x.pair(expert_site(0, Projection::gate), gate_a, gate_b, 2).pair(expert_site(0, Projection::up), up_a, up_b, 2);
  const auto ta = y.add(a), tb = y.add(b);
  y.factor(expert_site(0, Projection::gate), whole(ta, 6, 20), whole(tb, 20, 6).row_range(0, 10, 2), 2);
  y.factor(expert_site(0, Projection::up), whole(ta, 6, 20), whole(tb, 20, 6).row_range(1, 10, 2), 2);
  const VerifyReport report = verify_pair(x, y, false);
  EXPECT_TRUE(report.same);
  EXPECT_EQ(report.exactness, Exactness::value_exact);
  EXPECT_EQ(report.identical, 0);
  EXPECT_EQ(report.largest_relative, 0);

  // The same with gate and up in each other's place.
  Maker z;
  const auto za = z.add(a), zb = z.add(b);
  z.factor(expert_site(0, Projection::up), whole(za, 6, 20), whole(zb, 20, 6).row_range(0, 10, 2), 2);
  z.factor(expert_site(0, Projection::gate), whole(za, 6, 20), whole(zb, 20, 6).row_range(1, 10, 2), 2);
  EXPECT_EQ(verify_pair(x, z).num_differences, 2);
}

TEST(Compare, ZeroComponentsAnywhereAreValueExact) {
  Dense a(7, 24), b(16, 7);  // components 1, 2, 4, 6 are kA's; 0 has a zero row of A, 3 a zero column of B, 5 both
  const std::int64_t place[] = {1, 2, 4, 6};
  for (std::int64_t k = 0; k < 4; ++k) {
    for (std::int64_t j = 0; j < 24; ++j) a.at(place[k], j) = kA.at(k, j);
    for (std::int64_t i = 0; i < 16; ++i) b.at(i, place[k]) = kB.at(i, k);
  }
  for (std::int64_t i = 0; i < 16; ++i) b.at(i, 0) = 3;
  for (std::int64_t j = 0; j < 24; ++j) a.at(3, j) = -5;
  Maker x, y;
  x.pair(kDense, kA, kB), y.pair(kDense, a, b);
  EXPECT_EQ(verify_pair(x, y).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(y, x).exactness, Exactness::value_exact);

  b.at(15, 3) = 0x1p-60;  // no longer zero
  Maker z;
  z.pair(kDense, a, b);
  EXPECT_EQ(verify_pair(x, z).exactness, Exactness::lossy);
}

TEST(Compare, WideningIsValueExactAndNarrowingRounded) {
  Maker f32, bf16(Dtype::bf16), f16(Dtype::f16), f64(Dtype::f64);
  for (Maker* maker : {&f32, &bf16, &f16, &f64}) maker->pair(kDense, kA, kB, 3);
  EXPECT_EQ(verify_pair(f32, bf16).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(f16, f32).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(bf16, f64).exactness, Exactness::value_exact);

  const Dense a = kA.times(1.2345), b = kB.times(0.98765);  // more bits than 16-bit floats have
  for (const auto& [dtype, unit] : {std::pair{Dtype::bf16, 0x1p-8}, std::pair{Dtype::f16, 0x1p-11}}) {
    Maker wide, narrow(dtype), both(dtype);
    wide.pair(kDense, a, b), narrow.pair(kDense, a, b);
    const VerifyReport report = verify_pair(wide, narrow);
    EXPECT_TRUE(report.same);
    EXPECT_EQ(report.exactness, Exactness::rounded);
    EXPECT_GT(report.largest_relative, unit / 100);
    EXPECT_LT(report.largest_relative, 2 * unit);
    EXPECT_EQ(report.where, describe(kDense));
    EXPECT_EQ(report.num_differences, 0);
    const VerifyReport exact = verify_pair(wide, narrow, false);
    EXPECT_FALSE(exact.same);
    EXPECT_EQ(exact.num_differences, 1);
    // One element off by more than a rounding.
    Dense off = b;
    off.at(7, 2) *= 1 + 3 * unit;
    Maker spoiled(dtype);
    spoiled.pair(kDense, a, off);
    EXPECT_EQ(verify_pair(wide, spoiled).exactness, Exactness::lossy);
  }
}

TEST(Compare, ACastMayTurnTinyValuesIntoZero) {
  for (const std::int64_t tiny : {16, 24}) {  // the first values of a row of A, or all of them
    Dense a = kA;
    for (std::int64_t j = 0; j < tiny; ++j) a.at(1, j) = 0x1.8p-27;
    Maker wide, narrow(Dtype::f16);
    wide.pair(kDense, a, kB), narrow.pair(kDense, a, kB);
    EXPECT_EQ(verify_pair(wide, narrow).exactness, Exactness::rounded);
    EXPECT_EQ(verify_pair(narrow, wide).exactness, Exactness::rounded);
  }
}

TEST(Compare, PowersOfTwoMayMoveBetweenScaleAAndB) {
  Maker x, in_b, in_a, both, negative;
  x.pair(kDense, kA, kB, 6);
  in_b.pair(kDense, kA, kB.times(8), 0.75);
  in_a.pair(kDense, kA.times(0.25), kB, 24);
  both.pair(kDense, kA.times(16), kB.times(0.5), 0.75);
  negative.pair(kDense, kA.times(-1), kB.times(-1), 6);
  for (Maker* y : {&in_b, &in_a, &both, &negative}) {
    EXPECT_EQ(verify_pair(x, *y).exactness, Exactness::value_exact);
    EXPECT_EQ(verify_pair(*y, x).exactness, Exactness::value_exact);
  }
  Maker wrong;
  wrong.pair(kDense, kA, kB.times(-1), 6);
  EXPECT_EQ(verify_pair(x, wrong).exactness, Exactness::lossy);
  EXPECT_DOUBLE_EQ(verify_pair(x, wrong).largest_relative, 2);
}

TEST(Compare, FoldingOtherScalesIsExactOrRoundedAsTheBitsSay) {
  Maker x, exact_b, exact_a;
  x.pair(kDense, kA, kB, 3);
  exact_b.pair(kDense, kA, kB.times(3), 1);  // 8 bits times 3 fit
  exact_a.pair(kDense, kA.times(3), kB, 1);
  EXPECT_EQ(verify_pair(x, exact_b).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(x, exact_a).exactness, Exactness::value_exact);

  const Dense b = folded(kB, 1.2345678), a = folded(kA, 0.9871234);
  Maker y, rounded_b, rounded_a;
  y.pair(kDense, a, b, std::sqrt(8.0));
  rounded_b.pair(kDense, a, folded(b, std::sqrt(8.0)), 1);
  rounded_a.pair(kDense, folded(a, std::sqrt(8.0) / 4), b, 4);
  for (Maker* z : {&rounded_b, &rounded_a}) {
    const VerifyReport report = verify_pair(y, *z);
    EXPECT_EQ(report.exactness, Exactness::rounded);
    EXPECT_TRUE(report.same);
    EXPECT_GT(report.largest_relative, 0x1p-30);
    EXPECT_LT(report.largest_relative, 0x1p-23);
  }
  // Products that agree in double, but not in all their bits.
  Dense long_b = kB.times(1.0 / 3), product_b = long_b.times(std::sqrt(8.0));
  Maker f64(Dtype::f64), f64_folded(Dtype::f64);
  f64.pair(kDense, kA, long_b, std::sqrt(8.0)), f64_folded.pair(kDense, kA, product_b, 1);
  EXPECT_EQ(verify_pair(f64, f64_folded).exactness, Exactness::rounded);

  Maker wrong;
  wrong.pair(kDense, a, folded(b, 2.0), 1);  // the factor of sqrt(2) that rsLoRA files go wrong by
  const VerifyReport report = verify_pair(y, wrong);
  EXPECT_FALSE(report.same);
  EXPECT_NEAR(report.largest_relative, 1 - std::sqrt(0.5), 1e-6);
}

TEST(Compare, ALastBitOfTheScaleIsNotAnotherFunction) {
  Maker x, y;
  x.pair(kDense, kA, kB, std::sqrt(8.0));
  y.pair(kDense, kA, kB, std::nextafter(std::sqrt(8.0), 9));
  EXPECT_EQ(verify_pair(x, y).exactness, Exactness::value_exact);
  Maker z;
  z.pair(kDense, kA, kB, std::sqrt(8.0) * (1 + 1e-5));
  EXPECT_EQ(verify_pair(x, z).exactness, Exactness::lossy);
  EXPECT_NEAR(verify_pair(x, z).largest_relative, 1e-5, 1e-9);
}

TEST(Compare, EveryFlippedBitIsFoundAndNamed) {
  const Site other{"model.layers.1.self_attn.q_proj", "", -1, Projection::none};
  for (const auto& [dtype, bits] : {std::pair{Dtype::f32, 32}, std::pair{Dtype::bf16, 16}, std::pair{Dtype::f16, 16}}) {
    for (int bit = 0; bit < bits; ++bit) {
      Maker x(dtype), y(dtype);
      x.pair(kDense, kA, kB).pair(other, kA, kB), y.pair(kDense, kA, kB).pair(other, kA, kB);
      const std::int64_t element = 2 * 4 + 1;  // B[2, 1] of the second pair
      y.tensors().flip(3, element * bits / 8 + bit / 8, bit % 8);
      VerifyReport report;
      try {
        report = verify_pair(x, y);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE);
        continue;
      }
      EXPECT_FALSE(report.same) << bit;
      EXPECT_EQ(report.identical, 1);
      ASSERT_EQ(report.differences.size(), 1U);
      EXPECT_EQ(report.differences[0].name, describe(other));
      EXPECT_NE(report.differences[0].what.find("lora_B[2, 1] is "), std::string::npos) << report.differences[0].what;
      EXPECT_NE(report.differences[0].what.find("(1 of 64 elements differ)"), std::string::npos);
      EXPECT_GT(report.largest_relative, 0);
      EXPECT_EQ(report.where, describe(other));
    }
  }
}

TEST(Compare, AFlippedBitIsFoundBesideAMovedScaleAndInSubnormals) {
  Maker x, moved;
  x.pair(kDense, kA, kB, 1), moved.pair(kDense, kA, kB.times(4), 0.25);
  moved.tensors().flip(1, 4 * 9, 0);
  EXPECT_EQ(verify_pair(x, moved).exactness, Exactness::lossy);

  Dense b = kB;
  b.at(3, 0) = 0x1p-140;
  Maker y, flipped;
  y.pair(kDense, kA, b), flipped.pair(kDense, kA, b);
  flipped.tensors().flip(1, 4 * 3 * 4, 0);
  EXPECT_EQ(verify_pair(y, flipped).exactness, Exactness::lossy);
}

TEST(Compare, TheTransposedUpdateOfASquareMatrixIsFoundAndNamed) {
  const Dense a = random_dense(4, 20, 31), b = random_dense(20, 4, 32);
  Maker x, y;
  x.pair(kDense, a, b);
  const auto ta = y.add(a), tb = y.add(b);
  y.factor(kDense, whole(tb, 20, 4).transposed(), whole(ta, 4, 20).transposed());
  const VerifyReport report = verify_pair(x, y);
  EXPECT_FALSE(report.same);
  ASSERT_EQ(report.differences.size(), 1U);
  EXPECT_NE(report.differences[0].what.find("transposed"), std::string::npos);
}

TEST(Compare, AFactorThatOneSideLacksMustBeZero) {
  Maker x, zero, nonzero;
  x.pair(expert_site(0, Projection::up), kA, kB);
  zero.pair(expert_site(0, Projection::up), kA, kB).pair(expert_site(1, Projection::up), kA, Dense(16, 4));
  nonzero.pair(expert_site(0, Projection::up), kA, kB).pair(expert_site(2, Projection::up), kA, kB);
  const VerifyReport same = verify_pair(x, zero);
  EXPECT_TRUE(same.same);
  EXPECT_EQ(same.exactness, Exactness::value_exact);
  EXPECT_EQ(same.compared, 2);
  EXPECT_EQ(same.identical, 1);
  EXPECT_FALSE(same.notes.empty());
  EXPECT_TRUE(verify_pair(zero, x).same);

  const VerifyReport differs = verify_pair(x, nonzero);
  EXPECT_FALSE(differs.same);
  ASSERT_EQ(differs.differences.size(), 1U);
  EXPECT_EQ(differs.differences[0].name, describe(expert_site(2, Projection::up)));
  EXPECT_EQ(differs.differences[0].what, "only in the second adapter");
  EXPECT_EQ(differs.differences[0].relative, 1);
  EXPECT_EQ(verify_pair(nonzero, x).differences[0].what.find("only in the first adapter"), 0U);
}

TEST(Compare, ZeroUpdatesAreTheSameWhateverA) {
  Maker x, y, z;
  x.pair(kDense, kA, Dense(16, 4)), y.pair(kDense, random_dense(8, 24, 9), Dense(16, 8)),
      z.pair(kDense, random_dense(3, 24, 8), random_dense(16, 3, 7), 0);
  EXPECT_EQ(verify_pair(x, y).exactness, Exactness::value_exact);
  EXPECT_EQ(verify_pair(x, z).exactness, Exactness::value_exact);
}

TEST(Compare, OtherShapesAreADifference) {
  Maker x, y;
  x.pair(kDense, kA, kB), y.pair(kDense, random_dense(4, 16, 1), random_dense(24, 4, 2));
  const VerifyReport report = verify_pair(x, y);
  ASSERT_EQ(report.differences.size(), 1U);
  EXPECT_NE(report.differences[0].what.find("[16, 24]"), std::string::npos);
  EXPECT_NE(report.differences[0].what.find("[24, 16]"), std::string::npos);
}

TEST(Compare, RelativeDifferenceIsTheOneOfTheDenseUpdates) {
  for (const int rank : {4, 7}) {
    const Dense a = random_dense(rank, 24, 41), b = random_dense(16, rank, 42);
    Maker x, y;
    x.pair(kDense, kA, kB, 1.5), y.pair(kDense, a, b, 0.5);
    const Dense dx = product(kB, kA, 1.5), dy = product(b, a, 0.5);
    EXPECT_NEAR(verify_pair(x, y).largest_relative, minus(dx, dy).norm() / std::max(dx.norm(), dy.norm()), 1e-13);
  }
}
}  // namespace
}  // namespace peft
