#include "low_rank/operators.h"

#include <gtest/gtest.h>

#include <cmath>

namespace peft::low_rank {
namespace {

Dense row(std::vector<double> values) {
  Dense m(1, static_cast<std::int64_t>(values.size()));
  m.values = std::move(values);
  return m;
}

constexpr std::uint64_t kStreams[] = {1, 2, 3};

TEST(Operators, pruning_by_magnitude_keeps_the_largest_and_of_equal_ones_the_first) {
  Dense m = row({1, -3, 2, -2, 0.5, 2});
  prune_by_magnitude(m, 0.5);
  EXPECT_EQ(m.values, (std::vector<double>{0, -3, 2, -2, 0, 0}));
  m = row({1, 2, 3});
  prune_by_magnitude(m, 0.99);  // int(2.97): as Python cuts
  EXPECT_EQ(m.values, (std::vector<double>{0, 2, 3}));
  prune_by_magnitude(m, 1);
  EXPECT_EQ(m.values, (std::vector<double>{0, 2, 3}));
  prune_by_magnitude(m, 0);
  EXPECT_EQ(m.values, (std::vector<double>{0, 0, 0}));
}

TEST(Operators, of_equal_magnitudes_the_first_row_by_row) {
  Dense m(2, 2);
  m.at(0, 0) = 1, m.at(0, 1) = -1, m.at(1, 0) = 1, m.at(1, 1) = 1;
  prune_by_magnitude(m, 0.5);
  EXPECT_EQ(m.at(0, 0), 1);
  EXPECT_EQ(m.at(0, 1), -1);
  EXPECT_EQ(m.at(1, 0), 0);
  EXPECT_EQ(m.at(1, 1), 0);
}

// Worked by hand, as PEFT's ties(): signs elected by the pruned values without weights, zero votes for plus; the mean
// of the weighted values that have the sign; pruned ones do not count.
TEST(Operators, ties_by_hand) {
  const std::vector<Dense> matrices = {row({4, 1, -2, 3}), row({-1, 2, -4, -3}), row({-2, 0.1, 3, 0.2})};
  const std::vector<double> weights = {1, 2, 10};
  OperatorOptions options;
  options.density = 0.5;  // pruned: {4, 0, 0, 3}, {0, 0, -4, -3}, {-2, 0, 3, 0}
  const Dense total = apply(Operator::ties, matrices, weights, options, kStreams);
  // votes 2, 0, -1, 0 -> + + - +
  EXPECT_EQ(total.values, (std::vector<double>{4, 0, -8, 3}));
  options.majority_by_count = true;  // votes 0, 0, 0, 0 -> all plus
  const Dense frequency = apply(Operator::ties, matrices, weights, options, kStreams);
  EXPECT_EQ(frequency.values, (std::vector<double>{4, 0, 30, 3}));
  options.density = 1;
  options.majority_by_count = false;
  const Dense whole = apply(Operator::ties, matrices, weights, options, kStreams);
  // votes 1, 3.1, -3, 0.2 -> + + - +; element 1: (1 + 4 + 1) / 3
  EXPECT_EQ(whole.values, (std::vector<double>{4, 2, -5, (3 + 2.0) / 2}));
}

TEST(Operators, sums_and_pruned_sums) {
  const std::vector<Dense> matrices = {row({4, 1}), row({-1, 2})};
  const std::vector<double> weights = {0.5, -2};
  EXPECT_EQ(apply(Operator::linear, matrices, weights, {}, kStreams).values, (std::vector<double>{4, -3.5}));
  OperatorOptions half;
  half.density = 0.5;
  EXPECT_EQ(apply(Operator::magnitude_prune, matrices, weights, half, kStreams).values, (std::vector<double>{2, -4}));
}

TEST(Operators, random_pruning_keeps_its_part_scales_it_and_depends_on_nothing_else) {
  Dense m(100, 200);
  for (double& v : m.values) v = 1;
  Dense same = m, other_seed = m, other_stream = m;
  prune_at_random(m, 0.3, 1, 5);
  prune_at_random(same, 0.3, 1, 5);
  prune_at_random(other_seed, 0.3, 2, 5);
  prune_at_random(other_stream, 0.3, 1, 6);
  double kept = 0;
  for (const double v : m.values) {
    ASSERT_TRUE(v == 0 || v == 1 / 0.3);
    kept += v == 0 ? 0 : 1;
  }
  EXPECT_NEAR(kept / 20000, 0.3, 0.015);
  EXPECT_EQ(m.values, same.values);
  EXPECT_NE(m.values, other_seed.values);
  EXPECT_NE(m.values, other_stream.values);
  int both = 0;
  for (std::size_t i = 0; i < m.values.size(); ++i) both += m.values[i] != 0 && other_stream.values[i] != 0 ? 1 : 0;
  EXPECT_NEAR(both / 20000.0, 0.09, 0.01) << "streams must not follow one another";
}

TEST(Operators, dare_ties_elects_among_what_is_left) {
  Dense m(50, 50);
  for (double& v : m.values) v = 2;
  OperatorOptions options;
  options.density = 0.5;
  const std::vector<Dense> matrices = {m, m};
  const std::vector<double> weights = {1, 3};
  const Dense result = apply(Operator::dare_ties, matrices, weights, options, kStreams);
  // 2 / density = 4, times the mean of the weights of those that kept it: 0, 1, 3 or 2.
  int seen[4] = {};
  for (const double v : result.values) {
    const double of = v / 4;
    ASSERT_TRUE(of == 0 || of == 1 || of == 2 || of == 3) << v;
    ++seen[static_cast<int>(of)];
  }
  for (const int count : seen) EXPECT_NEAR(count / 2500.0, 0.25, 0.05);
}

}  // namespace
}  // namespace peft::low_rank
