// One struct for each kind of element: how to see its bits, whether it is finite, what value it has.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

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
  static double value(const std::byte* p) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits(p)) << 16));
  }
};

// A narrow float becomes a binary32 by moving its fields into place and correcting the exponent's bias with an exact
// multiplication; that treats subnormals right, too. Special values must be seen before.
inline double widen(std::uint32_t magnitude, bool negative, float bias) {
  const float value = std::bit_cast<float>(magnitude) * bias;
  return static_cast<double>(negative ? -value : value);
}

struct F16 : FloatElement<std::uint16_t, 0x7c00> {
  static double value_of(std::uint16_t h) {
    const bool negative = (h & 0x8000) != 0;
    if ((h & 0x7c00) != 0x7c00) return widen(static_cast<std::uint32_t>(h & 0x7fff) << 13, negative, 0x1p112F);
    if ((h & 0x03ff) != 0) return std::numeric_limits<double>::quiet_NaN();
    return negative ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
  }
  static double value(const std::byte* p) { return value_of(bits(p)); }
};
struct F8E5M2 : FloatElement<std::uint8_t, 0x7c> {  // the high byte of an F16
  static double value(const std::byte* p) { return F16::value_of(static_cast<std::uint16_t>(bits(p) << 8)); }
};
struct F8E4M3 : FloatElement<std::uint8_t, 0x7f> {  // no infinity; all bits set is NaN
  static double value(const std::byte* p) {
    const std::uint8_t b = bits(p);
    if ((b & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
    return widen(static_cast<std::uint32_t>(b & 0x7f) << 20, (b & 0x80) != 0, 0x1p120F);
  }
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
    case Dtype::f64: return body(F64{});
    case Dtype::f32: return body(F32{});
    case Dtype::bf16: return body(Bf16{});
    case Dtype::f16: return body(F16{});
    case Dtype::f8_e5m2: return body(F8E5M2{});
    case Dtype::f8_e4m3: return body(F8E4M3{});
    default: break;
  }
  switch (info(dtype).bits) {
    case 16: return body(OpaqueElement<std::uint16_t>{});
    case 32: return body(OpaqueElement<std::uint32_t>{});
    case 64: return body(OpaqueElement<std::uint64_t>{});
    default: return body(OpaqueElement<std::uint8_t>{});
  }
}

}  // namespace peft::adapter
