// What is gathered is what the view says, element by element, whatever the experts are.
#include "execute/merge/inputs/gathered_factors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "execute/values/element.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

double at(const FactorSource& source, std::int64_t row, std::int64_t col) {
  return load_element(source.dtype, source.data + row * source.row_stride + col * source.col_stride);
}

void expect_same(const Plan& plan, const View& view, GatherStore& store, std::size_t in_turn) {
  const FactorSource plain = source_of(plan, view), gathered = store.open(plan, view, in_turn);
  for (std::int64_t i = 0; i < view.rows; ++i) {
    for (std::int64_t k = 0; k < view.cols; ++k)
      ASSERT_EQ(at(gathered, i, k), at(plain, i, k)) << fmt::format("row {}, column {}, offset {}", i, k, view.offset);
  }
}

// A fused lora_B [rows, rank x experts]: expert e has columns k * experts + e.
class MergeGather : public testing::TestWithParam<std::tuple<Dtype, std::int64_t, std::int64_t, std::int64_t>> {};

TEST_P(MergeGather, ElementsAreThoseOfTheView) {
  const auto [dtype, rows, rank, experts] = GetParam();
  PlanBuilder builder(7);
  builder.source(Dtype::u8, 1, 3, true);  // odd addresses
  const View whole = builder.source(dtype, rows + 2, rank * experts, false);
  const Plan plan = builder.make();
  GatherStore store;
  for (std::int64_t e = 0; e < experts; ++e) {
    View view = whole;  // without the first row, as the up half of gate_up_proj
    view.offset += rank * experts + e;
    view.rows = rows, view.cols = rank;
    view.row_stride = rank * experts, view.col_stride = experts;
    expect_same(plan, view, store, 2);
    std::swap(view.rows, view.cols);
    std::swap(view.row_stride, view.col_stride);
    expect_same(plan, view, store, 2000);  // room for few neighbours
  }
}

INSTANTIATE_TEST_SUITE_P(All, MergeGather,
                         testing::Values(std::tuple(Dtype::bf16, 40, 3, 128), std::tuple(Dtype::bf16, 33, 4, 37),
                                         std::tuple(Dtype::f32, 70, 5, 60), std::tuple(Dtype::f16, 64, 1, 5),
                                         std::tuple(Dtype::f32, 300, 8, 16)));

TEST(MergeGatherOnce, NeighboursAreReadOnce) {
  PlanBuilder builder(8);
  View view = builder.source(Dtype::bf16, 50, 4 * 32, false);
  const Plan plan = builder.make();
  view.rows = 50, view.cols = 4, view.row_stride = 128, view.col_stride = 32;
  GatherStore store;
  const FactorSource first = store.open(plan, view, 2);
  view.offset = 31;
  const FactorSource last = store.open(plan, view, 2);
  EXPECT_EQ(first.owner, last.owner);
  ASSERT_NE(first.owner, nullptr);
  EXPECT_EQ(last.data - first.data, 31 * 50 * 4 * 2);
  EXPECT_EQ(last.row_stride, 8);
  EXPECT_EQ(last.col_stride, 2);
}

}  // namespace
}  // namespace peft::execution
