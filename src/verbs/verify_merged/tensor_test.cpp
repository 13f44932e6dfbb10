#include "verbs/verify_merged/tensor.h"

#include <gtest/gtest.h>

namespace peft::verbs {
namespace {

// A matrix of 100 elements to which `factor` times a delta of norm 1 was added, and an error of norm `residual`.
MatrixSums sums_of(double factor, double residual = 0) {
  MatrixSums sums;
  sums.site.emplace().module = "model.layers.0.mlp.down_proj";
  sums.elements = 100;
  sums.base = 25;
  sums.delta = 1;
  sums.product = factor;
  sums.change = factor * factor + residual * residual;
  sums.error = (factor - 1) * (factor - 1) + residual * residual;
  sums.noise = 1e-12;
  sums.bounds.exact = factor == 1 && residual == 0 ? 100 : 0;
  sums.bounds.beyond = 100 - sums.bounds.exact;
  return sums;
}

TEST(MergedTensor, the_expected_sum_is_no_difference) { EXPECT_FALSE(difference_of(sums_of(1), "w")); }

TEST(MergedTensor, multiples_of_the_delta_are_named) {
  const auto twice = difference_of(sums_of(2), "w");
  ASSERT_TRUE(twice);
  EXPECT_EQ(twice->kind, MergedDifference::Kind::scaled);
  EXPECT_EQ(twice->what, "merged twice");
  EXPECT_EQ(twice->tensor, "model.layers.0.mlp.down_proj");
  EXPECT_EQ(difference_of(sums_of(-1), "w")->what, "subtracted");
  EXPECT_EQ(difference_of(sums_of(0.5), "w")->what, "merged 0.5 times");
}

TEST(MergedTensor, a_matrix_of_the_base_is_not_merged) {
  MatrixSums sums = sums_of(0);
  sums.unchanged = sums.elements;
  const auto difference = difference_of(sums, "w");
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->kind, MergedDifference::Kind::not_merged);
  EXPECT_EQ(difference->factor, 0);
}

TEST(MergedTensor, something_else_is_no_multiple) {
  const auto difference = difference_of(sums_of(1, 0.5), "w");
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->kind, MergedDifference::Kind::different);
  EXPECT_DOUBLE_EQ(difference->relative, 0.5);
}

TEST(MergedTensor, an_element_that_no_adapter_touches_is_changed) {
  MatrixSums sums;
  sums.elements = 10;
  sums.base = 4;
  sums.error = 1;
  sums.bounds.exact = 10;
  EXPECT_FALSE(difference_of(sums, "norm.weight"));
  sums.bounds = {.exact = 9, .beyond = 1};
  const auto difference = difference_of(sums, "norm.weight");
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->kind, MergedDifference::Kind::changed);
  EXPECT_EQ(difference->tensor, "norm.weight") << "there is no site to name";
  EXPECT_DOUBLE_EQ(difference->relative, 0.5);
}

// Rows 1 to 2 of a [4, 6] tensor, and a view of every second column of it, transposed.
TEST(MergedTensor, runs_visit_every_element_of_a_view_once) {
  for (const View& view : {View{0, 0, 0, 4, 6, 6, 1}, View{0, 0, 1, 3, 4, 2, 6}, View{0, 0, 8, 2, 2, 6, 3}}) {
    std::vector<int> seen(24), expected(24);
    for (std::int64_t i = 0; i < view.rows; ++i)
      for (std::int64_t j = 0; j < view.cols; ++j) ++expected[view.offset + i * view.row_stride + j * view.col_stride];
    for (std::int64_t first = 0; first < 4; first += 2) {
      visit_runs(view, 6, first, 2, [&](const ElementRun& run) {
        for (std::int64_t n = 0; n < run.count; ++n) {
          ++seen[first * 6 + run.at + n * run.step];
          const std::int64_t row = run.along_row ? run.line : run.begin + n,
                             col = run.along_row ? run.begin + n : run.line;
          EXPECT_EQ(view.offset + row * view.row_stride + col * view.col_stride, first * 6 + run.at + n * run.step);
        }
      });
    }
    EXPECT_EQ(seen, expected);
  }
}

}  // namespace
}  // namespace peft::verbs
