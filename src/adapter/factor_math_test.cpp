#include "adapter/factor_math.h"

#include <gtest/gtest.h>

#include "support/test_tensors.h"

namespace peft::adapter {
namespace {

using peft::testing::Dense;
using peft::testing::product;
using peft::testing::random_dense;
using peft::testing::Tensors;
using peft::testing::whole;

// Keeps both factors of a comparison in one file.
struct Pair {
  Tensors tensors;
  std::vector<Factor> factors;
  std::shared_ptr<const TensorFile> file;

  void add(const Dense& a, const Dense& b, double scale) {
    const std::string name = std::to_string(factors.size());
    const auto ta = tensors.add(name + ".a", Dtype::f64, a), tb = tensors.add(name + ".b", Dtype::f64, b);
    factors.push_back(
        {{}, FactorKind::linear, b.rows, a.cols, a.rows, scale, whole(ta, a.rows, a.cols), whole(tb, b.rows, b.cols)});
  }
  DeltaDifference difference(std::span<const double> gain = {}) {
    file = tensors.file();
    return delta_difference(components(*file, factors[0]), components(*file, factors[1]), gain);
  }
};

Dense minus(const Dense& x, const Dense& y) {
  Dense result = x;
  for (std::size_t i = 0; i < result.values.size(); ++i) result.values[i] -= y.values[i];
  return result;
}

TEST(FactorMath, QrKeepsTheGramMatrixAcrossBlocks) {
  const Dense m = random_dense(23, 5, 3);
  TallQr qr(5);
  for (std::int64_t first = 0; first < 23; first += 4) {
    const std::int64_t count = std::min<std::int64_t>(4, 23 - first);
    std::vector<double> block(static_cast<std::size_t>(5 * count));
    for (std::int64_t j = 0; j < 5; ++j) {
      for (std::int64_t i = 0; i < count; ++i) block[static_cast<std::size_t>(j * count + i)] = m.at(first + i, j);
    }
    qr.append(block, count);
  }
  for (std::int64_t i = 0; i < 5; ++i) {
    for (std::int64_t j = 0; j < 5; ++j) {
      double want = 0, got = 0;
      for (std::int64_t k = 0; k < 23; ++k) want += m.at(k, i) * m.at(k, j);
      for (std::int64_t k = 0; k < 5; ++k)
        got += qr.r()[static_cast<std::size_t>(i * 5 + k)] * qr.r()[static_cast<std::size_t>(j * 5 + k)];
      EXPECT_NEAR(got, want, 1e-13);
      if (i > j) {
        EXPECT_EQ(qr.r()[static_cast<std::size_t>(j * 5 + i)], 0) << "below the diagonal";
      }
    }
  }
}

TEST(FactorMath, NormIsTheOneOfTheProduct) {
  for (const auto& [out, in, rank] :
       {std::tuple{700, 300, 4}, std::tuple{3, 5, 8}, std::tuple{1, 1, 1}, std::tuple{257, 256, 16}}) {
    const Dense a = random_dense(rank, in, 5), b = random_dense(out, rank, 6);
    Pair pair;
    pair.add(a, b, 0.75);
    const auto file = pair.tensors.file();
    const double want = product(b, a, 0.75).norm();
    EXPECT_NEAR(delta_norm(*file, pair.factors[0]), want, 1e-13 * want);
  }
}

TEST(FactorMath, DifferenceOfEqualAndOfUnequalRanks) {
  for (const int rank : {6, 4}) {
    const Dense a = random_dense(6, 40, 7), b = random_dense(50, 6, 8), c = random_dense(rank, 40, 9),
                d = random_dense(50, rank, 10);
    Pair pair;
    pair.add(a, b, 2);
    pair.add(c, d, 3);
    const DeltaDifference found = pair.difference();
    const Dense x = product(b, a, 2), y = product(d, c, 3);
    EXPECT_NEAR(found.norm_x, x.norm(), 1e-12);
    EXPECT_NEAR(found.norm_y, y.norm(), 1e-12);
    EXPECT_NEAR(found.norm_difference, minus(x, y).norm(), 1e-12);
    EXPECT_NEAR(found.relative(), minus(x, y).norm() / std::max(x.norm(), y.norm()), 1e-14);
  }
}

TEST(FactorMath, ASmallDifferenceIsNotLostInCancellation) {
  const Dense a = random_dense(4, 30, 11);
  Dense b = random_dense(20, 4, 12);
  Pair pair;
  pair.add(a, b, 1);
  b.at(3, 2) += 0x1p-50;
  Dense only(20, 4);
  only.at(3, 2) = 0x1p-50;
  pair.add(a, b, 1);
  const double want = product(only, a, 1).norm();
  EXPECT_NEAR(pair.difference().norm_difference, want, 1e-12 * want);
}

TEST(FactorMath, GainMovesPowersOfTwoBetweenAAndB) {
  const Dense a = random_dense(3, 10, 13), b = random_dense(12, 3, 14);
  Dense a2 = a, b2 = b;
  const double gain[] = {4, -0.5, 1};
  for (std::int64_t k = 0; k < 3; ++k) {
    for (std::int64_t j = 0; j < 10; ++j) a2.at(k, j) *= gain[k];
    for (std::int64_t i = 0; i < 12; ++i) b2.at(i, k) /= gain[k];
  }
  Pair pair;
  pair.add(a, b, 2);
  pair.add(a2, b2, 2);
  EXPECT_EQ(pair.difference(gain).norm_difference, 0);
}

TEST(FactorMath, RelativeOfZerosAndOfOverflow) {
  EXPECT_EQ(DeltaDifference{}.relative(), 0);
  EXPECT_EQ((DeltaDifference{.norm_x = 0, .norm_y = 2, .norm_difference = 2}.relative()), 1);
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ((DeltaDifference{.norm_x = inf, .norm_y = 2, .norm_difference = inf}.relative()), 1);
}

}  // namespace
}  // namespace peft::adapter
