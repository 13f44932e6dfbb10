// One struct for each kind of element: how to see its bits, whether it is finite, what value it has.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/half.h"
#include "peft/tensor.h"

namespace peft::adapter {

template <class Bits>
Bits load(const std::byte* p) {
  Bits bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

// A float of `Bits` with an exponent mask; all exponent bits set means infinity or NaN.
template <class Bits, Bits ExponentMask>
struct FloatElement {
  static constexpr bool kFloating = true;
  static constexpr std::int64_t kWidth = sizeof(Bits);
  static constexpr Bits kValueBits = static_cast<Bits>(std::numeric_limits<Bits>::max() >> 1);  // all but the sign
  static Bits bits(const std::byte* p) { return load<Bits>(p); }
  static bool finite(const std::byte* p) { return (bits(p) & ExponentMask) != ExponentMask; }
};

struct F64 : FloatElement<std::uint64_t, 0x7ff0000000000000> {
  static double value(const std::byte* p) { return std::bit_cast<double>(bits(p)); }
};
struct F32 : FloatElement<std::uint32_t, 0x7f800000> {
  static double value(const std::byte* p) { return static_cast<double>(std::bit_cast<float>(bits(p))); }
};
struct Bf16 : FloatElement<std::uint16_t, 0x7f80> {
  static double value(const std::byte* p) { return static_cast<double>(bf16_to_float(bits(p))); }
};
struct F16 : FloatElement<std::uint16_t, 0x7c00> {
  static double value(const std::byte* p) { return Float16::decode(bits(p)); }
};

// Formats of one byte.
template <class Format>
struct F8 {
  static constexpr bool kFloating = true;
  static constexpr std::int64_t kWidth = 1;
  // All but the sign, where the format has a -0; where it has none, that pattern is NaN.
  static constexpr std::uint8_t kValueBits = Format::decode(Format::kSign) == 0 ? Format::kAllOnes : 0xff;
  static std::uint8_t bits(const std::byte* p) { return std::to_integer<std::uint8_t>(*p); }
  static double value(const std::byte* p) { return Format::decode(bits(p)); }
  static bool finite(const std::byte* p) { return std::isfinite(value(p)); }
};

// Everything else: bytes to be compared, no value to compute with.
template <class Bits>
struct OpaqueElement {
  static constexpr bool kFloating = false;
  static constexpr std::int64_t kWidth = sizeof(Bits);
  static constexpr Bits kValueBits = std::numeric_limits<Bits>::max();
  static Bits bits(const std::byte* p) { return load<Bits>(p); }
};

// Calls body(element type) for the dtype.
template <class Body>
auto visit(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::f64:
      return body(F64{});
    case Dtype::f32:
      return body(F32{});
    case Dtype::bf16:
      return body(Bf16{});
    case Dtype::f16:
      return body(F16{});
    case Dtype::f8_e5m2:
      return body(F8<Float8E5M2>{});
    case Dtype::f8_e4m3:
      return body(F8<Float8E4M3>{});
    case Dtype::f8_e5m2fnuz:
      return body(F8<Float8E5M2Fnuz>{});
    case Dtype::f8_e4m3fnuz:
      return body(F8<Float8E4M3Fnuz>{});
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

}  // namespace peft::adapter
