#include "verbs/low_rank/new_adapter.h"

#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::verbs {
namespace {

MatrixGroup gate_and_up(bool interleaved) {
  const std::string module = "model.layers.0.mlp.experts";
  return {.sites = {{module, "", 7, Projection::gate}, {module, "", 7, Projection::up}},
          .out = {3, 3},
          .kind = FactorKind::linear,
          .interleaved = interleaved};
}

TEST(MatrixGroup, rows_lie_one_below_the_other_or_alternate) {
  const MatrixGroup below = gate_and_up(false), alternating = gate_and_up(true);
  EXPECT_EQ(below.rows(), 6);
  EXPECT_EQ(below.first_row(1), 3);
  EXPECT_EQ(below.row_step(), 1);
  EXPECT_EQ(alternating.rows(), 6);
  EXPECT_EQ(alternating.first_row(1), 1);
  EXPECT_EQ(alternating.row_step(), 2);
  EXPECT_EQ(below.name(), "model.layers.0.mlp.experts.7.gate+up");
}

TEST(NewAdapter, factors_are_rounded_once_and_kept_as_stored) {
  low_rank::Factors factors{low_rank::Dense(6, 1), low_rank::Dense(2, 1)};
  for (std::int64_t i = 0; i < 6; ++i) factors.b.at(i, 0) = 1 + 0x1p-20;
  factors.a.at(0, 0) = 0.5, factors.a.at(1, 0) = -3;
  const StoredPair pair = store(gate_and_up(false), factors, Dtype::bf16);
  EXPECT_EQ(pair.rank, 1);
  EXPECT_EQ(pair.in, 2);
  EXPECT_EQ(pair.a.size(), 4u);
  EXPECT_EQ(pair.b.size(), 12u);
  EXPECT_EQ(pair.values.b.at(5, 0), 1) << "what the bytes say";
  EXPECT_EQ(pair.values.a.at(1, 0), -3);
}

TEST(NewAdapter, a_value_that_the_dtype_cannot_hold_names_the_group) {
  low_rank::Factors factors{low_rank::Dense(6, 1), low_rank::Dense(2, 1)};
  factors.a.at(0, 0) = 1e6;
  try {
    store(gate_and_up(false), factors, Dtype::f16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NUM_OVERFLOW);
    EXPECT_EQ(error.detail().tensor, "model.layers.0.mlp.experts.7.gate+up");
  }
}

TEST(NewAdapter, a_report_knows_its_worst_matrix) {
  LowRankResult result;
  record(result, gate_and_up(false), 4, 2, 0.5);
  record(result, gate_and_up(true), 4, 4, 0.5);
  record(result, gate_and_up(false), 0, 0, 0);
  summarise(result);
  EXPECT_EQ(result.sites.size(), 2u);
  EXPECT_EQ(result.left_out.size(), 1u) << "it came out as zero";
  EXPECT_DOUBLE_EQ(result.worst, 0.25);
  EXPECT_DOUBLE_EQ(result.mean, 0.1875);
}

}  // namespace
}  // namespace peft::verbs
