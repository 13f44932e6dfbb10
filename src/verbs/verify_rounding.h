// How far two numbers may be apart when one is a rounding of the other.
#pragma once

#include <span>

#include "peft/tensor.h"

namespace peft::verbs {

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
// before, as programs multiply in fp32.
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
