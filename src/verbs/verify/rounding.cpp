#include "verbs/verify/rounding.h"
namespace peft::verbs {
namespace {

// a * b == c * d in exact arithmetic: a product is its rounded value plus an error that fma gives.
bool equal_products(double a, double b, double c, double d) {
  const double p = a * b, q = c * d;
  return p == q && std::fma(a, b, -p) == std::fma(c, d, -q);
}

}  // namespace

Precision precision_of(Dtype dtype) {
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

Allowance allowance(const Scaled& x, const Scaled& y) {
  const double ratio = x.factor / y.factor;
  if (x.dtype == y.dtype && std::abs(ratio) == 1) return {};
  const Precision px = precision_of(x.dtype), py = precision_of(y.dtype);
  const double unit = std::ldexp(1.0, -std::min(px.bits, py.bits));
  Allowance result;
  if (x.dtype != y.dtype) result.relative = unit;
  if (!is_power_of_two(ratio)) result.relative = unit + std::min(unit, std::ldexp(1.0, -24));
  result.absolute = std::max(std::abs(x.factor) * std::ldexp(1.0, px.subnormal_exponent() - 1),
                             std::abs(y.factor) * std::ldexp(1.0, py.subnormal_exponent() - 1));
  return result;
}

bool is_power_of_two(double value) {
  int exponent = 0;
  return std::abs(std::frexp(value, &exponent)) == 0.5;
}

double nearest_power_of_two(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);  // in [1/2, 1)
  if (mantissa == 0) return 0;
  return std::copysign(std::ldexp(std::abs(mantissa) < M_SQRT1_2 ? 0.5 : 1.0, exponent), value);
}

Match match(std::span<const double> x, const Scaled& x_scale, std::span<const double> y, const Scaled& y_scale) {
  const Allowance allowed = allowance(x_scale, y_scale);
  const double fx = x_scale.factor, fy = y_scale.factor;
  // Products with a power of two are exact: no need to look at their errors.
  const bool plain = is_power_of_two(fx) && is_power_of_two(fy);
  Match result;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double p = fx * x[i], q = fy * y[i];
    if (p == q && (plain || equal_products(fx, x[i], fy, y[i]))) continue;
    result.exact = false;
    if (std::abs(p - q) <= allowed.relative * std::max(std::abs(p), std::abs(q)) + allowed.absolute) continue;
    result.near = false;
    break;
  }
  return result;
}

}  // namespace peft::verbs
