#include "base/float_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace peft {
namespace {

// What a bit pattern means, by the definition of the format and with the C library's arithmetic.
double meaning(std::uint32_t bits, int exponent_bits, int mantissa_bits, int bias, Specials specials) {
  const std::uint32_t mantissa = bits & ((1u << mantissa_bits) - 1u);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1u));
  const bool negative = (bits >> (exponent_bits + mantissa_bits) & 1u) != 0;
  const int top = (1 << exponent_bits) - 1;
  double value = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
  if (specials == Specials::ieee && exponent == top) value = mantissa == 0 ? INFINITY : NAN;
  if (specials == Specials::nan_only && exponent == top && mantissa == (1u << mantissa_bits) - 1u) value = NAN;
  if (specials == Specials::negative_nan && negative && exponent == 0 && mantissa == 0) value = NAN;
  return negative ? -value : value;
}

template <typename Format>
struct Traits;
#define FORMAT(type, e, m, b, s)                                                                 \
  template <>                                                                                    \
  struct Traits<type> {                                                                          \
    static double meaning_of(std::uint32_t bits) { return meaning(bits, e, m, b, Specials::s); } \
  }
FORMAT(Float16, 5, 10, 15, ieee);
FORMAT(BFloat16, 8, 7, 127, ieee);
FORMAT(Float8E5M2, 5, 2, 15, ieee);
FORMAT(Float8E4M3, 4, 3, 7, nan_only);
FORMAT(Float8E5M2Fnuz, 5, 2, 16, negative_nan);
FORMAT(Float8E4M3Fnuz, 4, 3, 8, negative_nan);
#undef FORMAT

template <typename Format>
class SmallFloatTest : public testing::Test {};
using Formats = testing::Types<Float16, BFloat16, Float8E5M2, Float8E4M3, Float8E5M2Fnuz, Float8E4M3Fnuz>;
TYPED_TEST_SUITE(SmallFloatTest, Formats);

TYPED_TEST(SmallFloatTest, EveryPatternDecodesToItsMeaningAndBack) {
  for (std::uint32_t bits = 0; bits < 1u << TypeParam::kBits; ++bits) {
    const double expected = Traits<TypeParam>::meaning_of(bits);
    const double value = TypeParam::decode(bits);
    ASSERT_EQ(std::isnan(value), std::isnan(expected)) << bits;
    if (std::isnan(value)) {
      ASSERT_TRUE(TypeParam::is_nan(bits));
      ASSERT_TRUE(TypeParam::is_nan(TypeParam::encode(value))) << bits;
    } else {
      ASSERT_EQ(value, expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(TypeParam::encode(value), bits);
    }
  }
}

// Between two neighbours: the middle goes to the even one, a hair beside the middle to the nearer one.
TYPED_TEST(SmallFloatTest, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < TypeParam::kLargest; ++bits) {
    const double low = TypeParam::decode(bits), high = TypeParam::decode(bits + 1);
    const double middle = low + (high - low) / 2;
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(TypeParam::encode(middle), even) << bits;
    ASSERT_EQ(TypeParam::encode(std::nextafter(middle, 0.0)), bits) << bits;
    ASSERT_EQ(TypeParam::encode(std::nextafter(middle, INFINITY)), bits + 1) << bits;
    const std::uint32_t negative = TypeParam::encode(-std::nextafter(middle, INFINITY));
    ASSERT_EQ(negative, TypeParam::kSign | (bits + 1)) << bits;
  }
}

TYPED_TEST(SmallFloatTest, BeyondTheLargestNumber) {
  const double largest = TypeParam::decode(TypeParam::kLargest);
  const double step = largest - TypeParam::decode(TypeParam::kLargest - 1);
  const double middle = largest + step / 2;
  // Half a step above: a tie, which goes to the even pattern: kLargest where that is even (E4M3: 464 -> 448).
  EXPECT_EQ(TypeParam::encode(middle) == TypeParam::kLargest, TypeParam::kLargest % 2 == 0);
  EXPECT_EQ(TypeParam::encode(std::nextafter(middle, 0.0)), TypeParam::kLargest);
  for (const double value : {std::nextafter(middle, INFINITY), 1e300, static_cast<double>(INFINITY)}) {
    const double result = TypeParam::decode(TypeParam::encode(value));
    const double negative = TypeParam::decode(TypeParam::encode(-value));
    if constexpr (std::is_same_v<TypeParam, Float16> || std::is_same_v<TypeParam, BFloat16> ||
                  std::is_same_v<TypeParam, Float8E5M2>) {
      EXPECT_EQ(result, INFINITY);
      EXPECT_EQ(negative, -INFINITY);
    } else {
      EXPECT_TRUE(std::isnan(result));
      EXPECT_TRUE(std::isnan(negative));
    }
    EXPECT_EQ(TypeParam::encode(value, true), TypeParam::kLargest);
    EXPECT_EQ(TypeParam::encode(-value, true), TypeParam::kSign | TypeParam::kLargest);
  }
}

TYPED_TEST(SmallFloatTest, TinyNumbersAndZero) {
  const double smallest = TypeParam::decode(1);
  EXPECT_EQ(TypeParam::encode(smallest / 2), 0u);
  EXPECT_EQ(TypeParam::encode(std::nextafter(smallest / 2, 1.0)), 1u);
  EXPECT_EQ(TypeParam::encode(std::numeric_limits<double>::denorm_min()), 0u);
  const bool has_negative_zero = !TypeParam::is_nan(TypeParam::kSign);
  EXPECT_EQ(TypeParam::encode(-0.0), has_negative_zero ? TypeParam::kSign : 0u);
  EXPECT_EQ(TypeParam::encode(-smallest / 4), has_negative_zero ? TypeParam::kSign : 0u);
}

TEST(BFloat16Fast, AgreesWithTheGeneralForm) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      ASSERT_TRUE(BFloat16::is_nan(bits));
      ASSERT_EQ(float_to_bf16(value), 0x7FC0);
      ASSERT_EQ(double_to_bf16(static_cast<double>(value)), 0x7FC0);
    } else {
      ASSERT_EQ(static_cast<double>(value), BFloat16::decode(bits));
      ASSERT_EQ(float_to_bf16(value), bits);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 2'000'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    ASSERT_EQ(float_to_bf16(value), double_to_bf16(static_cast<double>(value))) << value;
  }
}

// The short way beside the class: every half, and floats at and around every rounding limit.
TEST(FloatFormats, Float16TheShortWay) {
  const auto same = [](float value) {
    ASSERT_EQ(float_to_f16(value), Float16::encode(static_cast<double>(value))) << value;
  };
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const auto value = static_cast<float>(Float16::decode(bits));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(f16_to_float(static_cast<std::uint16_t>(bits))),
              std::bit_cast<std::uint32_t>(value))
        << bits;
    same(value);
    const float next = static_cast<float>(Float16::decode(bits + 1 <= 0xFFFF ? bits + 1 : bits));
    const float between = value / 2 + next / 2;
    for (const float near : {between, std::nextafter(between, value), std::nextafter(between, next)}) same(near);
  }
  std::mt19937 random(5);
  for (int i = 0; i < 1'000'000; ++i) same(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
}

// 1 + 2^-8 is a tie of bf16; a hair above it, visible only in a double, must not become one.
TEST(BFloat16Fast, DoublesAreRoundedOnce) {
  const double hair = std::ldexp(1.0, -40);
  EXPECT_EQ(double_to_bf16(1 + std::ldexp(1.0, -8) + hair), 0x3F81);
  EXPECT_EQ(double_to_bf16(1 + std::ldexp(1.0, -8)), 0x3F80);
}

TEST(KnownValues, OfEachFormat) {
  EXPECT_EQ(float_to_f16(65504.0f), 0x7BFF);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(float_to_f16(-1.5f), 0xBE00);
  EXPECT_EQ(f16_to_float(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(float_to_bf16(3.14159265f), 0x4049);
  EXPECT_EQ(Float8E4M3::decode(0x7E), 448.0);
  EXPECT_EQ(Float8E4M3::encode(464.0), 0x7Eu);
  EXPECT_EQ(Float8E4M3::encode(465.0), 0x7Fu);
  EXPECT_EQ(Float8E5M2::decode(0x7B), 57344.0);
  EXPECT_EQ(Float8E4M3Fnuz::decode(0x7F), 240.0);
  EXPECT_EQ(Float8E5M2Fnuz::decode(0x7F), 57344.0);
  EXPECT_EQ(e8m0_to_double(127), 1.0);
  EXPECT_EQ(e8m0_to_double(0), std::ldexp(1.0, -127));
  EXPECT_TRUE(std::isnan(e8m0_to_double(255)));
}

// The table and the classes it is made of say the same, and a number that fits comes back as it went in.
TEST(FloatFormats, EncodeAndDecodeOneElement) {
  for (const DtypeInfo& row : dtypes()) {
    const FloatFormat* format = float_format(row.dtype);
    EXPECT_EQ(is_float(row.dtype), format != nullptr) << row.name;
    EXPECT_EQ(is_plain_float(row.dtype), format != nullptr && row.bits >= 16) << row.name;
    if (format == nullptr) continue;
    std::byte bytes[8];
    for (const double value : {0.0, 1.0, -1.5, 0.25}) {
      EXPECT_TRUE(encode_float(row.dtype, value, bytes)) << row.name;
      EXPECT_EQ(decode_float(row.dtype, bytes), value) << row.name;
    }
    const double least = std::ldexp(1.0, format->least_exponent);
    EXPECT_TRUE(encode_float(row.dtype, least, bytes)) << row.name;
    EXPECT_EQ(decode_float(row.dtype, bytes), least) << row.name;
    const double next = 1 + std::ldexp(1.0, 1 - format->significand_bits);
    EXPECT_TRUE(encode_float(row.dtype, next, bytes)) << row.name;
    EXPECT_EQ(decode_float(row.dtype, bytes), next) << row.name;
    EXPECT_EQ(encode_float(row.dtype, 1e300, bytes), row.dtype == Dtype::f64) << row.name;
    with_element_type(row.dtype, [&]<class Element>(Element) {
      if constexpr (Element::kFloating) {
        EXPECT_EQ(format->value_bits, Element::kValueBits) << row.name;
      }
    });
  }
}

TEST(FloatFormats, CodesOfMxfp4) {
  EXPECT_EQ(e2m1_to_float(0b0101), 3);
  EXPECT_EQ(e2m1_to_float(0b1111), -6);
}

}  // namespace
}  // namespace peft
