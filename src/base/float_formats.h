// Floating-point formats: the one place that knows how the bits of a float become a value and back.
//
// Decoding is exact. Encoding rounds once, to nearest even, from a double, which holds every value of every format
// exactly. The algorithm works on integers, so no rounding mode and no flush-to-zero setting of the processor changes a
// bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "peft/tensor.h"

namespace peft {

// One row for each dtype whose values can be scaled and converted.
struct FloatFormat {
  Dtype dtype;
  int significand_bits;      // with the leading one
  int least_exponent;        // of the smallest normal number
  std::uint64_t value_bits;  // an element is zero when these are: all but the sign, where the format has a -0
  double (*decode)(std::uint64_t bits);
  std::uint64_t (*encode)(double value);  // overflow becomes infinity, or NaN where the format has no infinity
};
// Null for a dtype without a row.
const FloatFormat* float_format(Dtype dtype);

// True for the dtypes a value can be scaled in or converted between.
inline bool is_float(Dtype dtype) { return float_format(dtype) != nullptr; }
// Floats of 16 bits and more are numbers by themselves. Narrower ones are codes that need their scales.
inline bool is_plain_float(Dtype dtype) { return is_float(dtype) && info(dtype).bits >= 16; }

// One element in memory. The dtype must have a row.
double decode_float(Dtype dtype, const std::byte* from);
// False when a finite value became infinite or NaN.
bool encode_float(Dtype dtype, double value, std::byte* to);

// What the bit patterns above the largest number mean.
enum class Specials : std::uint8_t {
  ieee,          // infinities and NaN in the highest exponent
  nan_only,      // "fn": only all ones is NaN, no infinity
  negative_nan,  // "fnuz": the pattern of -0 is NaN, no infinity, no -0
};

template <int kExponentBits, int kMantissaBits, int kBias, Specials kSpecials>
struct SmallFloat {
  static constexpr int kBits = 1 + kExponentBits + kMantissaBits;
  static constexpr int kSignificandBits = kMantissaBits + 1;
  static constexpr int kLeastExponent = 1 - kBias;
  static constexpr std::uint32_t kSign = 1u << (kBits - 1);
  static constexpr std::uint32_t kAllOnes = kSign - 1;                                       // of exponent and mantissa
  static constexpr std::uint32_t kInfinity = ((1u << kExponentBits) - 1u) << kMantissaBits;  // ieee only
  static constexpr std::uint32_t kNan = kSpecials == Specials::ieee       ? kInfinity | 1u << (kMantissaBits - 1)
                                        : kSpecials == Specials::nan_only ? kAllOnes
                                                                          : kSign;
  static constexpr std::uint32_t kLargest = kSpecials == Specials::ieee       ? kInfinity - 1
                                            : kSpecials == Specials::nan_only ? kAllOnes - 1
                                                                              : kAllOnes;

  // All bits but the sign. Where the format has no -0, the pattern of it is NaN, so the sign counts.
  static constexpr std::uint32_t kValueBits = kSpecials == Specials::negative_nan ? kSign | kAllOnes : kAllOnes;

  static constexpr bool is_nan(std::uint32_t bits) {
    const std::uint32_t magnitude = bits & kAllOnes;
    if constexpr (kSpecials == Specials::ieee) return magnitude > kInfinity;
    if constexpr (kSpecials == Specials::nan_only) return magnitude == kAllOnes;
    return bits == kSign;
  }

  static constexpr double decode(std::uint32_t bits) {
    const std::uint64_t sign = (bits & kSign) != 0 ? 1ull << 63 : 0;
    if (is_nan(bits)) return std::bit_cast<double>(sign | 0x7FF8000000000000ull);
    const std::uint32_t magnitude = bits & kAllOnes;
    if (kSpecials == Specials::ieee && magnitude == kInfinity)
      return std::bit_cast<double>(sign | 0x7FF0000000000000ull);
    std::uint64_t mantissa = magnitude & ((1u << kMantissaBits) - 1u);
    int exponent = static_cast<int>(magnitude >> kMantissaBits);
    if (exponent == 0) {
      if (mantissa == 0) return std::bit_cast<double>(sign);
      exponent = 1;
      while ((mantissa >> kMantissaBits) == 0) {  // a subnormal number is a normal one in a double
        mantissa <<= 1;
        --exponent;
      }
      mantissa &= (1u << kMantissaBits) - 1u;
    }
    const auto biased = static_cast<std::uint64_t>(std::int64_t{exponent} - kBias + 1023);
    return std::bit_cast<double>(sign | biased << 52 | mantissa << (52 - kMantissaBits));
  }

  // Beyond the largest number (after rounding): infinity where the format has it, else NaN. `saturate` gives the
  // largest number instead. NaN becomes the format's quiet NaN with the sign kept (fnuz has only one).
  static constexpr std::uint32_t encode(double value, bool saturate = false) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const std::uint32_t sign = bits >> 63 != 0 ? kSign : 0;
    const std::uint64_t magnitude = bits & ~(1ull << 63);
    const std::uint32_t nan = kSpecials == Specials::negative_nan ? kNan : sign | kNan;
    if (magnitude > 0x7FF0000000000000ull) return nan;
    const std::uint32_t rounded = magnitude == 0x7FF0000000000000ull ? kLargest + 1 : round(magnitude);
    if (rounded > kLargest) {
      if (saturate) return sign | kLargest;
      return kSpecials == Specials::ieee ? sign | kInfinity : nan;
    }
    if (kSpecials == Specials::negative_nan && rounded == 0) return 0;
    return sign | rounded;
  }

 private:
  // Magnitude of a finite double to this format; may exceed kLargest.
  static constexpr std::uint32_t round(std::uint64_t magnitude) {
    const int exponent = static_cast<int>(magnitude >> 52) - 1023 + kBias;
    if (exponent >= (1 << kExponentBits) + 1) return kLargest + 1;
    std::uint64_t mantissa = magnitude & ((1ull << 52) - 1);
    if (magnitude >> 52 != 0) mantissa |= 1ull << 52;
    // Below the smallest normal number the mantissa loses one more bit per power of two.
    int drop = 52 - kMantissaBits;
    if (exponent < 1) drop += 1 - exponent;
    if (drop > 54) return 0;
    const std::uint64_t kept = mantissa >> drop;
    const std::uint64_t rest = mantissa & ((1ull << drop) - 1);
    const std::uint64_t half = 1ull << (drop - 1);
    const std::uint64_t up = rest > half || (rest == half && (kept & 1u) != 0) ? 1 : 0;
    // `kept` carries its leading one, which adds one to the exponent field; a carry out of the mantissa does too.
    const std::uint64_t base = exponent < 1 ? 0 : static_cast<std::uint64_t>(exponent - 1) << kMantissaBits;
    return static_cast<std::uint32_t>(base + kept + up);
  }
};

using Float16 = SmallFloat<5, 10, 15, Specials::ieee>;
using BFloat16 = SmallFloat<8, 7, 127, Specials::ieee>;
using Float8E5M2 = SmallFloat<5, 2, 15, Specials::ieee>;
using Float8E4M3 = SmallFloat<4, 3, 7, Specials::nan_only>;
using Float8E5M2Fnuz = SmallFloat<5, 2, 16, Specials::negative_nan>;
using Float8E4M3Fnuz = SmallFloat<4, 3, 8, Specials::negative_nan>;

// The two formats that matter most, the short way where the bits allow it. Same results as the class above, except that
// NaN becomes 0x7FC0 in bf16 whatever its sign, as PyTorch writes it.
constexpr float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

constexpr std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// One rounding: going through float first would round twice.
constexpr std::uint16_t double_to_bf16(double value) {
  const std::uint32_t bits = BFloat16::encode(value);
  return static_cast<std::uint16_t>(BFloat16::is_nan(bits) ? 0x7FC0u : bits);
}

constexpr float f16_to_float(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7FFFu, sign = bits & 0x8000u;
  if (magnitude - 0x0400u < 0x7C00u - 0x0400u)  // a normal number
    return std::bit_cast<float>(sign << 16 | ((magnitude << 13) + (112u << 23)));
  return static_cast<float>(Float16::decode(bits));
}
constexpr std::uint16_t float_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
  if (magnitude - 0x38800000u < 0x477FF000u - 0x38800000u)  // becomes a normal number
    return static_cast<std::uint16_t>(sign | (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13);
  return static_cast<std::uint16_t>(Float16::encode(static_cast<double>(value)));
}
constexpr std::uint16_t double_to_f16(double value) { return static_cast<std::uint16_t>(Float16::encode(value)); }

// F8_E8M0: a power of two, 2^(bits - 127); 255 is NaN. Only decoded: it is the scale of a block, never a result.
constexpr double e8m0_to_double(std::uint8_t bits) {
  if (bits == 255) return std::bit_cast<double>(0x7FF8000000000000ull);
  return std::bit_cast<double>((static_cast<std::uint64_t>(bits) - 127 + 1023) << 52);
}

// F4 (E2M1): one code of MXFP4. Bit 3 is the sign.
constexpr float e2m1_to_float(unsigned code) {
  constexpr float kMagnitudes[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  return (code & 8U) != 0 ? -kMagnitudes[code & 7U] : kMagnitudes[code & 7U];
}

template <class Bits>
Bits load_bits(const std::byte* p) {
  Bits bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

// Element types: how a loop over the elements of a tensor sees their bits, whether they are finite, and their values.
// All exponent bits set means infinity or NaN.
template <class Bits, Bits ExponentMask>
struct FloatElement {
  static constexpr bool kFloating = true;
  static constexpr std::int64_t kWidth = sizeof(Bits);
  static constexpr Bits kValueBits = static_cast<Bits>(std::numeric_limits<Bits>::max() >> 1);  // all but the sign
  static Bits bits(const std::byte* p) { return load_bits<Bits>(p); }
  static bool finite(const std::byte* p) { return (bits(p) & ExponentMask) != ExponentMask; }
};

struct F64Element : FloatElement<std::uint64_t, 0x7ff0000000000000> {
  static double value(const std::byte* p) { return std::bit_cast<double>(bits(p)); }
};
struct F32Element : FloatElement<std::uint32_t, 0x7f800000> {
  static double value(const std::byte* p) { return static_cast<double>(std::bit_cast<float>(bits(p))); }
};
struct BF16Element : FloatElement<std::uint16_t, 0x7f80> {
  static double value(const std::byte* p) { return static_cast<double>(bf16_to_float(bits(p))); }
};
struct F16Element : FloatElement<std::uint16_t, 0x7c00> {
  static double value(const std::byte* p) { return Float16::decode(bits(p)); }
};

// Formats of one byte.
template <class Format>
struct F8Element {
  static constexpr bool kFloating = true;
  static constexpr std::int64_t kWidth = 1;
  static constexpr auto kValueBits = static_cast<std::uint8_t>(Format::kValueBits);
  static std::uint8_t bits(const std::byte* p) { return std::to_integer<std::uint8_t>(*p); }
  static double value(const std::byte* p) { return Format::decode(bits(p)); }
  static bool finite(const std::byte* p) { return std::isfinite(value(p)); }
};

// A dtype that is no floating-point type: its bytes can be compared, and it has no value to compute with.
template <class Bits>
struct OpaqueElement {
  static constexpr bool kFloating = false;
  static constexpr std::int64_t kWidth = sizeof(Bits);
  static constexpr Bits kValueBits = std::numeric_limits<Bits>::max();
  static Bits bits(const std::byte* p) { return load_bits<Bits>(p); }
};

// Calls body(element type{}) for the dtype: the loops over elements in `body` are compiled for each type.
template <class Body>
auto with_element_type(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::f64:
      return body(F64Element{});
    case Dtype::f32:
      return body(F32Element{});
    case Dtype::bf16:
      return body(BF16Element{});
    case Dtype::f16:
      return body(F16Element{});
    case Dtype::f8_e5m2:
      return body(F8Element<Float8E5M2>{});
    case Dtype::f8_e4m3:
      return body(F8Element<Float8E4M3>{});
    case Dtype::f8_e5m2fnuz:
      return body(F8Element<Float8E5M2Fnuz>{});
    case Dtype::f8_e4m3fnuz:
      return body(F8Element<Float8E4M3Fnuz>{});
    default:
      break;
  }
  switch (info(dtype).bits) {
    case 16:
      return body(OpaqueElement<std::uint16_t>{});
    case 32:
      return body(OpaqueElement<std::uint32_t>{});
    case 64:
      return body(OpaqueElement<std::uint64_t>{});
    default:
      return body(OpaqueElement<std::uint8_t>{});
  }
}

}  // namespace peft
