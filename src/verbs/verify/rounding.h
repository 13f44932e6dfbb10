// How far two numbers may be apart when one is a rounding of the other, and the verdict on a comparison.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "peft/plan.h"
#include "peft/tensor.h"

namespace peft::verbs {

// How one matrix or tensor differs between two adapters. Exactness::lossy: it is not the same.
struct Verdict {
  Exactness exactness = Exactness::bit_exact;
  double relative = 0;  // ||x - y|| / max(||x||, ||y||), Frobenius
  std::string what;     // empty when bit-exact
  double bound = 0;     // in another basis: the part of `relative` that rounding explains
};

struct Precision {
  int bits = 24;              // of the significand
  int least_exponent = -126;  // of the smallest normal number
  int subnormal_exponent() const { return least_exponent - bits + 1; }
};
// Dtypes that nothing is computed in count as F32.
Precision precision_of(Dtype dtype);

// The distance between neighbouring numbers of the dtype at `value`. Inline and by the bits: it runs for every element
// of a model. Subnormal doubles count as zero; only F64 could tell them apart.
inline double last_place(Precision precision, double value) {
  const int exponent =
      std::max(static_cast<int>(std::bit_cast<std::uint64_t>(value) >> 52 & 0x7ff) - 1023, precision.least_exponent);
  return std::ldexp(1.0, exponent - precision.bits + 1);
}

// |p - q| <= relative * max(|p|, |q|) + absolute. Zero: only equal values pass.
struct Allowance {
  double relative = 0;
  double absolute = 0;
};

// A number as it is compared: the stored value times a factor.
struct Scaled {
  Dtype dtype = Dtype::f32;
  double factor = 1;
};

// What one rounding explains between x.factor * x and y.factor * y. Same dtype and factor: nothing. Factors that differ
// by a power of two only round where a value is subnormal. Any other ratio rounds once to the coarser dtype, and once
// before, because programs multiply in fp32.
Allowance allowance(const Scaled& x, const Scaled& y);

bool is_power_of_two(double value);         // of either sign: 1/4, -8
double nearest_power_of_two(double value);  // with its sign; 0 stays 0

// How x_scale.factor * x[i] and y_scale.factor * y[i] compare, over all i.
struct Match {
  bool exact = true;  // the exact products are equal
  bool near = true;   // within the allowance
  void operator&=(const Match& other) { exact = exact && other.exact, near = near && other.near; }
};
Match match(std::span<const double> x, const Scaled& x_scale, std::span<const double> y, const Scaled& y_scale);

}  // namespace peft::verbs
