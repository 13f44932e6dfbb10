// Floating point formats of 8 and 16 bits. Decoding is exact; encoding rounds once, to nearest even, from a double
// (which holds every float exactly). One algorithm for all formats, on integers, so that no rounding mode or
// flush-to-zero setting of the processor changes a bit.
#pragma once

#include <bit>
#include <cstdint>

namespace peft {

// What the bit patterns above the largest number mean.
enum class Specials : std::uint8_t {
  ieee,          // infinities and NaN in the highest exponent
  nan_only,      // "fn": only all ones is NaN, no infinity
  negative_nan,  // "fnuz": the pattern of -0 is NaN, no infinity, no -0
};

template <int kExponentBits, int kMantissaBits, int kBias, Specials kSpecials>
struct SmallFloat {
  static constexpr int kBits = 1 + kExponentBits + kMantissaBits;
  static constexpr std::uint32_t kSign = 1u << (kBits - 1);
  static constexpr std::uint32_t kAllOnes = kSign - 1;                                       // of exponent and mantissa
  static constexpr std::uint32_t kInfinity = ((1u << kExponentBits) - 1u) << kMantissaBits;  // ieee only
  static constexpr std::uint32_t kNan = kSpecials == Specials::ieee       ? kInfinity | 1u << (kMantissaBits - 1)
                                        : kSpecials == Specials::nan_only ? kAllOnes
                                                                          : kSign;
  static constexpr std::uint32_t kLargest = kSpecials == Specials::ieee       ? kInfinity - 1
                                            : kSpecials == Specials::nan_only ? kAllOnes - 1
                                                                              : kAllOnes;

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

// The two formats that matter most, without branches where the bits allow it. Same results as the class above, except
// that NaN becomes 0x7FC0 whatever its sign, as PyTorch writes it.
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

constexpr float f16_to_float(std::uint16_t bits) { return static_cast<float>(Float16::decode(bits)); }
constexpr std::uint16_t float_to_f16(float value) {
  return static_cast<std::uint16_t>(Float16::encode(static_cast<double>(value)));
}
constexpr std::uint16_t double_to_f16(double value) { return static_cast<std::uint16_t>(Float16::encode(value)); }

// F8_E8M0: a power of two, 2^(bits - 127); 255 is NaN. Only decoded: it is the scale of a block, never a result.
constexpr double e8m0_to_double(std::uint8_t bits) {
  if (bits == 255) return std::bit_cast<double>(0x7FF8000000000000ull);
  return std::bit_cast<double>((static_cast<std::uint64_t>(bits) - 127 + 1023) << 52);
}

}  // namespace peft
