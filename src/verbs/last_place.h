// What one rounding to a dtype can cost.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "peft/tensor.h"

namespace peft::verbs {

struct Precision {
  int bits = 24, least_exponent = -126;  // of the significand; of the smallest normal number
};
inline Precision precision_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return {53, -1022};
    case Dtype::bf16:
      return {8, -126};
    case Dtype::f16:
      return {11, -14};
    case Dtype::f8_e4m3:
      return {4, -6};
    case Dtype::f8_e5m2:
      return {3, -14};
    default:
      return {24, -126};
  }
}

// The distance between neighbouring numbers of the dtype at `value`.
inline double last_place(Precision precision, double value) {
  // By the bits: this runs for every element of a model. Subnormal doubles count as zero, which no dtype but F64 tells
  // apart.
  const int exponent =
      std::max(static_cast<int>(std::bit_cast<std::uint64_t>(value) >> 52 & 0x7ff) - 1023, precision.least_exponent);
  return std::ldexp(1.0, exponent - precision.bits + 1);
}

}  // namespace peft::verbs
