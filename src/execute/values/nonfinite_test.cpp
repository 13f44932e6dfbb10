#include "execute/values/nonfinite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace peft::execution {
namespace {

TEST(Finite, EveryPatternOfTheSmallTypes) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    std::vector<std::byte> bytes(2 * 37);
    const auto word = static_cast<std::uint16_t>(bits);
    std::memcpy(bytes.data() + 2 * (bits % 37), &word, 2);
    EXPECT_EQ(all_finite(bytes, Dtype::bf16), (bits & 0x7f80) != 0x7f80) << bits;
    EXPECT_EQ(all_finite(bytes, Dtype::f16), (bits & 0x7c00) != 0x7c00) << bits;
    EXPECT_TRUE(all_finite(bytes, Dtype::u16));
  }
}

TEST(Finite, WideTypes) {
  for (const double value : {0.0, -0.0, 1e-320, -1e308, 3.4e38}) {
    const auto narrow = static_cast<float>(value);
    EXPECT_TRUE(all_finite(std::as_bytes(std::span(&value, 1)), Dtype::f64));
    EXPECT_EQ(all_finite(std::as_bytes(std::span(&narrow, 1)), Dtype::f32), std::isfinite(narrow));
  }
  for (const double value : {std::nan(""), -std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    const auto narrow = static_cast<float>(value);
    EXPECT_FALSE(all_finite(std::as_bytes(std::span(&value, 1)), Dtype::f64));
    EXPECT_FALSE(all_finite(std::as_bytes(std::span(&narrow, 1)), Dtype::f32));
  }
}

}  // namespace
}  // namespace peft::execution
