#include "low_rank/spectrum.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <random>

namespace peft::low_rank {
namespace {

Dense random(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  Dense m(rows, cols);
  for (double& v : m.values) v = normal(engine);
  return m;
}

double distance(Dense x, const Dense& y) {
  for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] -= y.values[i];
  return norm(x);
}

double largest_deviation_from_orthogonal(const Dense& q) {
  double worst = 0;
  for (std::int64_t i = 0; i < q.cols; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < q.rows; ++k) sum += q.at(k, i) * q.at(k, j);
      worst = std::max(worst, std::abs(sum - (i == j ? 1 : 0)));
    }
  }
  return worst;
}

RC_GTEST_PROP(Spectrum, a_product_is_its_factors_again, ()) {
  const auto out = *rc::gen::inRange(1, 40), in = *rc::gen::inRange(1, 40), rank = *rc::gen::inRange(1, 20);
  const auto seed = *rc::gen::arbitrary<std::uint32_t>();
  const Dense b = random(out, rank, seed), a = random(in, rank, seed + 1u);
  const Spectrum s = spectrum_of_product(b, a);
  RC_ASSERT(s.size() <= std::min({out, in, rank}));
  RC_ASSERT(std::is_sorted(s.s.rbegin(), s.s.rend()));
  RC_ASSERT(largest_deviation_from_orthogonal(s.u) < 1e-12);
  RC_ASSERT(largest_deviation_from_orthogonal(s.v) < 1e-12);
  const Factors f = split(s, s.size());
  const Dense whole = product(b, a);
  RC_ASSERT(distance(product(f.b, f.a), whole) <= 1e-12 * norm(whole));
  RC_ASSERT(difference_norm({b, a}, f) <= 1e-12 * norm(whole));
  RC_ASSERT(std::abs(product_norm(b, a) - norm(whole)) <= 1e-12 * norm(whole));
}

TEST(Spectrum, a_large_matrix_gives_what_the_whole_svd_gives) {
  // 300 x 500, rank 6, and noise a thousand times smaller: this goes through the iteration.
  const Dense b = random(300, 6, 1), a = random(500, 6, 2), noise = random(300, 500, 3);
  Dense m = product(b, a);
  for (std::size_t i = 0; i < m.values.size(); ++i) m.values[i] += 1e-3 * noise.values[i];
  const Spectrum some = spectrum_of(m, 6), all = spectrum_of(m, 300);
  ASSERT_EQ(some.size(), 6);
  ASSERT_EQ(all.size(), 300);
  for (std::size_t k = 0; k < 6; ++k) EXPECT_NEAR(some.s[k], all.s[k], 1e-9 * all.s[k]);
  const Factors x = split(some, 6), y = split(all, 6);
  EXPECT_LE(difference_norm(x, y), 1e-6 * all.s[0]);
}

TEST(Spectrum, without_a_gap_the_cut_is_as_good_as_the_best) {
  Dense m = random(400, 300, 5);  // singular values that lie close together
  const Factors cut = split(spectrum_of(m, 10), 10);
  const Spectrum all = spectrum_of(m, 300);
  double best = 0;
  for (std::size_t k = 10; k < all.s.size(); ++k) best += all.s[k] * all.s[k];
  EXPECT_LE(residual_norm(m, cut), std::sqrt(best) * 1.001);
}

TEST(Spectrum, signs_are_fixed) {
  const Dense b = random(30, 4, 7), a = random(20, 4, 8);
  Dense minus_b = b, minus_a = a;
  scale(minus_b, -1);
  scale(minus_a, -1);
  const Spectrum x = spectrum_of_product(b, a), y = spectrum_of_product(minus_b, minus_a);
  for (std::int64_t k = 0; k < x.size(); ++k) {
    double largest = 0;
    for (const double v : x.u.column(k)) largest = std::abs(v) > std::abs(largest) ? v : largest;
    EXPECT_GT(largest, 0);
  }
  EXPECT_LE(distance(x.u, y.u), 1e-12);
  EXPECT_LE(distance(x.v, y.v), 1e-12);
}

TEST(Spectrum, numerical_rank_stops_at_nothing_at_the_floor_and_at_the_limit) {
  Spectrum s;
  s.s = {4, 2, 1e-3, 1e-14};
  EXPECT_EQ(numerical_rank(s, 10), 3);
  EXPECT_EQ(numerical_rank(s, 2), 2);
  EXPECT_EQ(numerical_rank(s, 10, 0.01), 2);
  s.s = {0, 0};
  EXPECT_EQ(numerical_rank(s, 10), 0);
  EXPECT_EQ(spectrum_of_product(random(5, 3, 1), Dense(4, 3)).s, std::vector<double>(3));
}

}  // namespace
}  // namespace peft::low_rank
