#include "verbs/verify/rounding.h"

#include <gtest/gtest.h>

#include <limits>

namespace peft::verbs {
namespace {

TEST(Rounding, a_last_place_is_the_distance_to_the_next_number) {
  const Precision f32 = precision_of(Dtype::f32), bf16 = precision_of(Dtype::bf16);
  EXPECT_EQ(last_place(f32, 1.0), std::numeric_limits<float>::epsilon());
  EXPECT_EQ(last_place(f32, -3.0), 2 * std::numeric_limits<float>::epsilon());
  EXPECT_EQ(last_place(bf16, 1.0), 0x1p-7);
  EXPECT_EQ(last_place(f32, 1e-45), std::numeric_limits<float>::denorm_min()) << "subnormal numbers lie evenly";
  EXPECT_EQ(last_place(f32, 0.0), std::numeric_limits<float>::denorm_min());
}

TEST(Rounding, subnormal_numbers_of_every_dtype_end_where_the_standard_says) {
  EXPECT_EQ(precision_of(Dtype::f64).subnormal_exponent(), -1074);
  EXPECT_EQ(precision_of(Dtype::f32).subnormal_exponent(), -149);
  EXPECT_EQ(precision_of(Dtype::f16).subnormal_exponent(), -24);
  EXPECT_EQ(precision_of(Dtype::bf16).subnormal_exponent(), -133);
  EXPECT_EQ(precision_of(Dtype::f8_e4m3).subnormal_exponent(), -9);
  EXPECT_EQ(precision_of(Dtype::f8_e5m2).subnormal_exponent(), -16);
}

TEST(Rounding, the_same_dtype_and_factor_leave_no_room) {
  EXPECT_EQ(allowance({Dtype::bf16, 2}, {Dtype::bf16, 2}).relative, 0);
  EXPECT_EQ(allowance({Dtype::bf16, 2}, {Dtype::bf16, -2}).absolute, 0);
  EXPECT_EQ(allowance({Dtype::f32, 1}, {Dtype::bf16, 1}).relative, 0x1p-8) << "the coarser dtype rounds";
  EXPECT_EQ(allowance({Dtype::f32, 4}, {Dtype::f32, 1}).relative, 0) << "powers of two round subnormal numbers only";
  EXPECT_GT(allowance({Dtype::f32, 4}, {Dtype::f32, 1}).absolute, 0);
  EXPECT_EQ(allowance({Dtype::f32, 3}, {Dtype::f32, 1}).relative, 0x1p-23) << "once to store, once to multiply";
}

TEST(Rounding, products_are_compared_exactly) {
  const std::vector<double> x{1, 2, 3}, y{3, 6, 9}, near{3, 6, 9 * (1 + 0x1p-24)}, far{3, 6, 9.1};
  EXPECT_TRUE(match(x, {Dtype::f32, 3}, y, {Dtype::f32, 1}).exact);
  EXPECT_FALSE(match(x, {Dtype::f32, 3}, near, {Dtype::f32, 1}).exact);
  EXPECT_TRUE(match(x, {Dtype::f32, 3}, near, {Dtype::f32, 1}).near);
  EXPECT_FALSE(match(x, {Dtype::f32, 3}, far, {Dtype::f32, 1}).near);
  // 0.1 * 3 and 0.3 * 1 round to neighbouring doubles; 0.1 * 10 rounds to 1 and is not 1.
  EXPECT_FALSE(match(std::vector{0.1}, {Dtype::f64, 10}, std::vector{1.0}, {Dtype::f64, 1}).exact);
}

TEST(Rounding, powers_of_two_are_of_either_sign) {
  EXPECT_TRUE(is_power_of_two(-8));
  EXPECT_TRUE(is_power_of_two(0.25));
  EXPECT_FALSE(is_power_of_two(3));
  EXPECT_FALSE(is_power_of_two(0));
  EXPECT_EQ(nearest_power_of_two(3), 4);
  EXPECT_EQ(nearest_power_of_two(-2.7), -2);
  EXPECT_EQ(nearest_power_of_two(0), 0);
}

}  // namespace
}  // namespace peft::verbs
