#include "verbs/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "peft/error.h"
#include "support/test_tensors.h"

namespace peft {
namespace {

using testing::Dense;
using testing::product;
using testing::random_dense;
using testing::Tensors;
using testing::whole;

Site expert_site(std::int64_t expert, Projection projection) {
  return {"model.layers.0.mlp.experts", "", expert, projection};
}
const Site kDense{"model.layers.0.self_attn.q_proj", "", -1, Projection::none};

// One adapter, built tensor by tensor.
class Maker {
 public:
  explicit Maker(Dtype dtype = Dtype::f32) : dtype_(dtype) {}

  // A pair of tensors as PEFT writes them for one module.
  Maker& pair(const Site& site, const Dense& a, const Dense& b, double scale = 1) {
    const auto ta = add(a), tb = add(b);
    return factor(site, whole(ta, a.rows, a.cols), whole(tb, b.rows, b.cols), scale);
  }
  Maker& factor(const Site& site, const View& a, const View& b, double scale = 1) {
    factors_.factors.push_back({site, FactorKind::linear, b.rows, a.cols, a.rows, scale, a, b});
    return *this;
  }
  Maker& extra(ExtraKind kind, const Site& site, const std::string& suffix, Dtype dtype,
               std::vector<std::int64_t> shape, const std::vector<double>& values) {
    factors_.extras.push_back({kind, site, suffix, tensors_.add(name(), dtype, std::move(shape), values)});
    return *this;
  }
  std::uint32_t add(const Dense& m) { return tensors_.add(name(), dtype_, m); }
  Tensors& tensors() { return tensors_; }
  Factors& factors() { return factors_; }

  Input input() {
    Input input;
    input.adapter.weights = tensors_.file("adapter.safetensors");
    input.reading.factors = factors_;
    return input;
  }

 private:
  std::string name() { return "t" + std::to_string(count_++); }

  Dtype dtype_;
  Tensors tensors_;
  Factors factors_;
  int count_ = 0;
};

VerifyReport verify_pair(Maker& x, Maker& y, bool rounded = true) {
  VerifyOptions options;
  options.tolerance_rounded = rounded;
  options.threads = 2;
  return compare(x.input(), y.input(), options);
}

Dense minus(const Dense& x, const Dense& y) {
  Dense result = x;
  for (std::size_t i = 0; i < result.values.size(); ++i) result.values[i] -= y.values[i];
  return result;
}

// A rounded to 24 bits times a factor: what a program stores that folds the scale into an F32 tensor.
Dense folded(const Dense& m, double factor) {
  Dense result = m;
  for (double& v : result.values) v = static_cast<double>(static_cast<float>(v * factor));
  return result;
}

const Dense kA = random_dense(4, 24, 1), kB = random_dense(16, 4, 2);

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

// Experts fused as PEFT does it: A rows e * r + k, B columns k * E + e; E != r.
void add_fused(Maker& maker, const std::vector<Dense>& as, const std::vector<Dense>& bs,
               const std::vector<int>& order) {
  const auto experts = static_cast<std::int64_t>(as.size()), rank = as[0].rows, in = as[0].cols, out = bs[0].rows;
  Dense a(experts * rank, in), b(out, rank * experts);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < in; ++j) a.at(e * rank + k, j) = as[e].at(k, j);
      for (std::int64_t i = 0; i < out; ++i) b.at(i, k * experts + e) = bs[e].at(i, k);
    }
  }
  const auto ta = maker.add(a), tb = maker.add(b);
  for (std::int64_t e = 0; e < experts; ++e) {
    maker.factor(expert_site(e, Projection::down), whole(ta, experts * rank, in).row_range(order[e] * rank, rank),
                 whole(tb, out, rank * experts).col_range(order[e], rank, experts), 2);
  }
}

struct Experts {
  std::vector<Dense> a, b;
  Experts(int count, std::int64_t rank, std::int64_t in, std::int64_t out) {
    for (int e = 0; e < count; ++e) {
      a.push_back(random_dense(rank, in, 100 + e));
      b.push_back(random_dense(out, rank, 200 + e));
    }
  }
};

TEST(Compare, FusedExpertsEqualPerExpertPairsBitForBit) {
  const Experts experts(5, 3, 300, 700);
  Maker x, y;
  for (int e = 4; e >= 0; --e) x.pair(expert_site(e, Projection::down), experts.a[e], experts.b[e], 2);  // any order
  add_fused(y, experts.a, experts.b, {0, 1, 2, 3, 4});
  const VerifyReport report = verify_pair(x, y);
  EXPECT_EQ(report.exactness, Exactness::bit_exact);
  EXPECT_EQ(report.identical, 5);
  EXPECT_TRUE(report.same);
}

TEST(Compare, SwappedExpertsAreFoundAndNamed) {
  const Experts experts(5, 3, 30, 20);
  Maker x, y;
  for (int e = 0; e < 5; ++e) x.pair(expert_site(e, Projection::down), experts.a[e], experts.b[e], 2);
  add_fused(y, experts.a, experts.b, {0, 3, 2, 1, 4});
  const VerifyReport report = verify_pair(x, y);
  EXPECT_FALSE(report.same);
  EXPECT_EQ(report.exactness, Exactness::lossy);
  EXPECT_EQ(report.identical, 3);
  ASSERT_EQ(report.num_differences, 2);
  for (const VerifyDifference& difference : report.differences) {
    const int other = difference.site == describe(expert_site(1, Projection::down)) ? 3 : 1;
    EXPECT_EQ(difference.site, describe(expert_site(4 - other, Projection::down)));
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
      EXPECT_EQ(report.differences[0].site, describe(other));
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

TEST(Compare, ReorderedComponentsAreTheSameSum) {
  Dense a = kA, b = kB;
  for (std::int64_t k = 0; k < 4; ++k) {
    for (std::int64_t j = 0; j < 24; ++j) a.at(3 - k, j) = kA.at(k, j);
    for (std::int64_t i = 0; i < 16; ++i) b.at(i, 3 - k) = kB.at(i, k);
  }
  Maker x, y;
  x.pair(kDense, kA, kB), y.pair(kDense, a, b);
  const VerifyReport report = verify_pair(x, y);
  EXPECT_EQ(report.exactness, Exactness::rounded);
  EXPECT_LT(report.largest_relative, 1e-14);
}

// Components repeated with parts of their weight: another basis, of another rank.
Dense beside(const Dense& x, const Dense& y) {
  Dense result(x.rows, x.cols + y.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t k = 0; k < result.cols; ++k) result.at(i, k) = k < x.cols ? x.at(i, k) : y.at(i, k - x.cols);
  }
  return result;
}
Dense below(const Dense& x, const Dense& y) {
  Dense result(x.rows + y.rows, x.cols);
  std::copy(x.values.begin(), x.values.end(), result.values.begin());
  std::copy(y.values.begin(), y.values.end(), result.values.begin() + static_cast<std::ptrdiff_t>(x.values.size()));
  return result;
}

TEST(Compare, PartsOfAnUpdateSideBySideAreItsSum) {
  Maker x, halves, parts, wrong, cancelling;
  x.pair(kDense, kA, kB, 2);
  halves.pair(kDense, below(kA, kA), beside(kB.times(0.5), kB.times(0.5)), 2);
  parts.pair(kDense, below(kA, kA), beside(kB.times(0.25), kB.times(0.75)), 2);
  wrong.pair(kDense, below(kA, kA), beside(kB.times(0.25), kB.times(0.7501)), 2);
  const Dense other_a = random_dense(2, 24, 51), other_b = random_dense(16, 2, 52);
  cancelling.pair(kDense, below(kA, below(other_a, other_a)), beside(kB, beside(other_b, other_b.times(-1))), 2);
  for (Maker* y : {&halves, &parts, &cancelling}) {
    const VerifyReport report = verify_pair(x, *y);
    EXPECT_EQ(report.exactness, Exactness::rounded);
    EXPECT_LT(report.largest_relative, 1e-14);
    EXPECT_EQ(verify_pair(*y, x).exactness, Exactness::rounded);
    EXPECT_FALSE(verify_pair(x, *y, false).same);
  }
  EXPECT_EQ(verify_pair(halves, parts).exactness, Exactness::rounded);
  for (Maker* y : {&x, &halves, &parts}) EXPECT_EQ(verify_pair(*y, wrong).exactness, Exactness::lossy);
}

TEST(Compare, ValuesThatDifferInTheSameBasisAreNoRounding) {
  const auto place = [](double v) { return v * (1 + 4 * 0x1p-23); };
  Dense a = kA, b = kB;  // an element of A in one component, one of B in another
  a.at(0, 3) = place(a.at(0, 3));
  b.at(5, 2) = place(b.at(5, 2));
  Maker x, in_both, in_one, more;
  x.pair(kDense, kA, kB), in_both.pair(kDense, a, b), in_one.pair(kDense, kA, b);
  Dense tiny(1, 24);
  tiny.at(0, 0) = 0x1p-40;
  more.pair(kDense, below(kA, tiny), beside(kB, random_dense(16, 1, 5)));
  for (Maker* y : {&in_both, &in_one, &more}) {
    EXPECT_EQ(verify_pair(x, *y).exactness, Exactness::lossy);
    EXPECT_LT(verify_pair(x, *y).largest_relative, 1e-6);
  }
  // The same beside a scale that one side has folded into A, where every element is rounded.
  const Dense long_a = a.times(1.2345);
  Maker folded_in, scaled, spoiled;
  scaled.pair(kDense, folded(long_a, 1), b, 3);
  folded_in.pair(kDense, folded(folded(long_a, 1), 3), b);
  spoiled.pair(kDense, folded(folded(long_a, 1), 3), kB);
  EXPECT_EQ(verify_pair(scaled, folded_in).exactness, Exactness::rounded);
  EXPECT_EQ(verify_pair(scaled, spoiled).exactness, Exactness::lossy);
}

TEST(Compare, WhatIsComputedAgainFromItsOwnResultIsTheSame) {
  Dense a = folded(kA, 1.2345), b = folded(kB, 0.98765);
  Maker x, again, in_b;
  x.pair(kDense, a, b);
  in_b.pair(kDense, a, folded(b, 1 + 0x1p-23));  // A is the same to the last bit: B's values were changed
  for (double* v : {&a.at(1, 4), &b.at(9, 3)}) *v = std::nextafter(static_cast<float>(*v), 1.0F);
  again.pair(kDense, a, b);
  EXPECT_EQ(verify_pair(x, again).exactness, Exactness::rounded);
  EXPECT_EQ(verify_pair(x, in_b).exactness, Exactness::lossy);
}

TEST(Compare, AnotherBasisIsSaidWithItsBoundAndItsDifference) {
  // Components p, q against p + q, p - q.
  Dense a(4, 24), b(16, 4);
  for (std::int64_t k = 0; k < 4; k += 2) {
    for (std::int64_t j = 0; j < 24; ++j)
      a.at(k, j) = kA.at(k, j) + kA.at(k + 1, j), a.at(k + 1, j) = kA.at(k, j) - kA.at(k + 1, j);
    for (std::int64_t i = 0; i < 16; ++i)
      b.at(i, k) = (kB.at(i, k) + kB.at(i, k + 1)) / 2, b.at(i, k + 1) = (kB.at(i, k) - kB.at(i, k + 1)) / 2;
  }
  Maker x, y, wrong;
  x.pair(kDense, kA, kB, 3), y.pair(kDense, a, b.times(3)), wrong.pair(kDense, a, b.times(3.001));
  const VerifyReport report = verify_pair(x, y);
  EXPECT_TRUE(report.same);
  EXPECT_EQ(report.exactness, Exactness::rounded);
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_TRUE(report.notes[0].starts_with("1 of 1 are the same update in another basis, within one rounding (bound "))
      << report.notes[0];
  EXPECT_NE(report.notes[0].find(", measured "), std::string::npos);
  const VerifyReport exact = verify_pair(x, y, false);
  ASSERT_EQ(exact.differences.size(), 1U);
  EXPECT_TRUE(exact.differences[0].what.starts_with("the same update in another basis, within one rounding (bound "));
  const VerifyReport different = verify_pair(x, wrong);
  ASSERT_EQ(different.differences.size(), 1U);
  EXPECT_NEAR(different.largest_relative, 0.001 / 3.001, 1e-6);
  EXPECT_TRUE(different.differences[0].what.starts_with("more than one rounding explains (bound "))
      << different.differences[0].what;
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
  EXPECT_EQ(differs.differences[0].site, describe(expert_site(2, Projection::up)));
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
    EXPECT_EQ(report.differences[i].site, describe(expert_site(59 - i, Projection::up)));
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
    EXPECT_EQ(report.differences[0].site, describe(kDense) + ".lora_magnitude_vector");
  }
  EXPECT_NEAR(verify_pair(x, finer).largest_relative, 0.001 / std::sqrt(1 + 4 + 9.006001 + 4.0625 * 4.0625), 1e-7);
  EXPECT_EQ(verify_pair(without, x).differences[0].what, "only in the second adapter");
}

TEST(Compare, TheReportDoesNotDependOnTheThreads) {
  const Experts experts(6, 3, 40, 50);
  Maker x, y;
  for (int e = 0; e < 6; ++e) {
    Site site = expert_site(0, Projection::up);
    site.module = "model.layers." + std::to_string(e) + ".mlp.experts";
    x.pair(site, experts.a[e], experts.b[e]);
    y.pair(site, experts.a[e], experts.b[(e + 1) % 6]);
  }
  VerifyOptions options;
  options.threads = 1;
  const VerifyReport one = compare(x.input(), y.input(), options);
  options.threads = 7;
  const VerifyReport many = compare(x.input(), y.input(), options);
  ASSERT_EQ(one.differences.size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(one.differences[i].site, many.differences[i].site);
    EXPECT_EQ(one.differences[i].relative, many.differences[i].relative);
  }
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
