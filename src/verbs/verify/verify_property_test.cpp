// Random factors, rewritten at random in ways that keep the function, and in ways that do not.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "support/test_tensors.h"
#include "verbs/verify/rounding.h"
#include "verbs/verify/verify.h"

namespace peft {
namespace {

using testing::Dense;
using testing::product;
using testing::random_dense;
using testing::Tensors;
using testing::whole;

struct Lora {
  Dense a, b;
  double scale;
};

Lora random_lora() {
  const int rank = *rc::gen::inRange(1, 7), in = *rc::gen::inRange(1, 40), out = *rc::gen::inRange(1, 40);
  const int seed = *rc::gen::inRange(0, 1 << 30);
  const double scale = *rc::gen::element(1.0, 0.5, 2.0, 3.0, 0.1, std::sqrt(2.0));
  return {random_dense(rank, in, seed), random_dense(out, rank, seed + 1), scale};
}

// Puts zero components between the others, each with A, B or both zero.
Lora padded(const Lora& lora) {
  std::vector<std::int64_t> sources;  // -1: a new one
  for (std::int64_t k = 0; k < lora.a.rows; ++k) {
    sources.insert(sources.end(), *rc::gen::inRange(0, 3), -1);
    sources.push_back(k);
  }
  const auto rank = static_cast<std::int64_t>(sources.size());
  Lora result{Dense(rank, lora.a.cols), Dense(lora.b.rows, rank), lora.scale};
  for (std::int64_t k = 0; k < rank; ++k) {
    const std::int64_t from = sources[k];
    const int kind = from < 0 ? *rc::gen::inRange(0, 3) : 3;
    for (std::int64_t j = 0; j < lora.a.cols; ++j)
      result.a.at(k, j) = kind == 3 ? lora.a.at(from, j) : kind == 1 ? 1 : 0;
    for (std::int64_t i = 0; i < lora.b.rows; ++i)
      result.b.at(i, k) = kind == 3 ? lora.b.at(i, from) : kind == 2 ? 1 : 0;
  }
  return result;
}

// Moves powers of two between scale, rows of A and columns of B.
Lora rescaled(const Lora& lora) {
  Lora result = lora;
  const int common = *rc::gen::inRange(-5, 6);
  result.scale = std::ldexp(lora.scale, common);
  for (std::int64_t k = 0; k < lora.a.rows; ++k) {
    const int own = *rc::gen::inRange(-4, 5);
    for (std::int64_t j = 0; j < lora.a.cols; ++j) result.a.at(k, j) = std::ldexp(lora.a.at(k, j), own);
    for (std::int64_t i = 0; i < lora.b.rows; ++i) result.b.at(i, k) = std::ldexp(lora.b.at(i, k), -own - common);
  }
  return result;
}

// Either as PEFT stores it, or with both matrices transposed in the file and seen through strides.
struct Stored {
  Tensors tensors;
  Input input;

  Stored(const Lora& lora, Dtype dtype_a, Dtype dtype_b, bool transposed) {
    const auto add = [&](const char* name, Dtype dtype, const Dense& m) {
      if (!transposed) return whole(tensors.add(name, dtype, m), m.rows, m.cols);
      Dense other(m.cols, m.rows);
      for (std::int64_t i = 0; i < m.rows; ++i) {
        for (std::int64_t j = 0; j < m.cols; ++j) other.at(j, i) = m.at(i, j);
      }
      return whole(tensors.add(name, dtype, other), m.cols, m.rows).transposed();
    };
    const View a = add("a", dtype_a, lora.a), b = add("b", dtype_b, lora.b);
    input.reading.factors.factors.push_back(
        {{"m", "", -1, Projection::none}, FactorKind::linear, lora.b.rows, lora.a.cols, lora.a.rows, lora.scale, a, b});
    input.adapter.weights = tensors.file();
  }
};

Stored stored(const Lora& lora, Dtype dtype_a, Dtype dtype_b) {
  return {lora, dtype_a, dtype_b, *rc::gen::arbitrary<bool>()};
}
Dtype any_dtype() { return *rc::gen::element(Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16); }

RC_GTEST_PROP(CompareProperty, RewritesThatKeepTheFunctionAreValueExact, ()) {
  const Lora x = random_lora(), y = rescaled(padded(x));
  const Stored left = stored(x, any_dtype(), any_dtype()), right = stored(y, any_dtype(), any_dtype());
  const VerifyReport report = verbs::compare(left.input, right.input, {});
  RC_ASSERT(report.same);
  RC_ASSERT(report.exactness <= Exactness::value_exact);
  RC_ASSERT(report.largest_relative == 0);
}

RC_GTEST_PROP(CompareProperty, APerturbationHasTheSizeOfTheDenseDifference, ()) {
  const Lora x = random_lora();
  Lora y = x;
  auto& values = *rc::gen::arbitrary<bool>() ? y.a.values : y.b.values;
  values[*rc::gen::inRange<std::size_t>(0, values.size())] *= 1 + std::ldexp(1.0, -*rc::gen::inRange(0, 40));
  Lora z = rescaled(padded(y));
  const Stored left = stored(x, Dtype::f64, Dtype::f64), right = stored(z, Dtype::f64, Dtype::f64);
  const VerifyReport report = verbs::compare(left.input, right.input, {});
  const Dense dx = product(x.b, x.a, x.scale), dy = product(y.b, y.a, y.scale);
  Dense difference = dx;
  for (std::size_t i = 0; i < difference.values.size(); ++i) difference.values[i] -= dy.values[i];
  const double want = difference.norm() / std::max(dx.norm(), dy.norm());
  RC_ASSERT(!report.same);
  RC_ASSERT(report.exactness == Exactness::lossy);
  RC_ASSERT(std::abs(report.largest_relative - want) <= 1e-6 * want + 1e-15);
}

Dense values(std::int64_t rows, std::int64_t cols, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Dense result(rows, cols);
  for (double& v : result.values) v = normal(random);
  return result;
}

// What a file of this dtype holds.
void round_to(Dense& m, Dtype dtype) {
  for (double& v : m.values) {
    const double place = verbs::last_place(verbs::precision_of(dtype), v);
    v = std::nearbyint(v / place) * place;
  }
}

Lora rounded(Lora lora, Dtype dtype) {
  round_to(lora.a, dtype);
  round_to(lora.b, dtype);
  return lora;
}

// Large enough that directions tell vectors apart.
Lora wide_lora(Dtype dtype) {
  const int rank = *rc::gen::inRange(1, 9), in = *rc::gen::inRange(24, 80), out = *rc::gen::inRange(24, 80);
  std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
  const double scale = *rc::gen::element(1.0, 0.5, 2.0, 3.0, std::sqrt(2.0));
  return rounded({values(rank, in, random), values(out, rank, random), scale}, dtype);
}

// B M and M^-1 A for a random M: rotations of two components at a time, and lengths. Scale 1, as an SVD has it.
Lora in_another_basis(const Lora& lora) {
  std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
  std::uniform_real_distribution<double> angle(0.3, 1.2), length(0.5, 2);
  Lora result{lora.a, lora.b.times(lora.scale), 1};
  const std::int64_t rank = lora.a.rows;
  for (std::int64_t p = 0; p < rank; ++p) {
    for (std::int64_t q = p + 1; q < rank; ++q) {
      const double c = std::cos(angle(random)), s = std::sqrt(1 - c * c);
      const auto turn = [c, s](double& x, double& y) {
        const double turned = c * x - s * y;
        y = s * x + c * y;
        x = turned;
      };
      for (std::int64_t j = 0; j < lora.a.cols; ++j) turn(result.a.at(p, j), result.a.at(q, j));
      for (std::int64_t i = 0; i < lora.b.rows; ++i) turn(result.b.at(i, p), result.b.at(i, q));
    }
    const double factor = length(random);
    for (std::int64_t j = 0; j < lora.a.cols; ++j) result.a.at(p, j) *= factor;
    for (std::int64_t i = 0; i < lora.b.rows; ++i) result.b.at(i, p) /= factor;
  }
  return result;
}

Lora reordered(const Lora& lora) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(lora.a.rows));
  for (std::size_t k = 0; k < order.size(); ++k) order[k] = static_cast<std::int64_t>(k);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(*rc::gen::arbitrary<std::uint64_t>()));
  Lora result = lora;
  for (std::int64_t k = 0; k < lora.a.rows; ++k) {
    for (std::int64_t j = 0; j < lora.a.cols; ++j) result.a.at(order[k], j) = lora.a.at(k, j);
    for (std::int64_t i = 0; i < lora.b.rows; ++i) result.b.at(i, order[k]) = lora.b.at(i, k);
  }
  return result;
}

RC_GTEST_PROP(CompareProperty, AFewLastPlacesOfOneElementAreADifferenceInAnyOrder, ()) {
  const Dtype dtype = *rc::gen::element(Dtype::f32, Dtype::bf16, Dtype::f16);
  const Lora x = wide_lora(dtype);
  Lora y = x;
  auto& elements = *rc::gen::arbitrary<bool>() ? y.a.values : y.b.values;
  double& element = elements[*rc::gen::inRange<std::size_t>(0, elements.size())];
  element += *rc::gen::inRange(4, 64) * verbs::last_place(verbs::precision_of(dtype), element);
  RC_PRE(element == rounded({Dense(1, 1, {element}), Dense(1, 1), 1}, dtype).a.at(0, 0));
  // In F16 a power of two can push values among the subnormal numbers, where they are rounded.
  const Lora z = dtype == Dtype::f16 || *rc::gen::arbitrary<bool>() ? reordered(y) : rescaled(padded(y));
  const Stored left = stored(x, dtype, dtype), right = stored(z, dtype, dtype);
  const VerifyReport report = verbs::compare(left.input, right.input, {});
  RC_ASSERT(!report.same);
  const Dense dx = product(x.b, x.a, x.scale), dy = product(y.b, y.a, y.scale);
  Dense difference = dx;
  for (std::size_t i = 0; i < difference.values.size(); ++i) difference.values[i] -= dy.values[i];
  const double want = difference.norm() / std::max(dx.norm(), dy.norm());
  RC_ASSERT(std::abs(report.largest_relative - want) <= 1e-6 * want + 1e-15);
}

RC_GTEST_PROP(CompareProperty, AnotherBasisIsTheSameFunctionRounded, ()) {
  const Dtype of_x = any_dtype(), of_y = any_dtype();
  const Lora x = wide_lora(of_x), y = in_another_basis(padded(x));
  const Stored left = stored(x, of_x, of_x), right = stored(y, of_y, of_y);
  const VerifyReport report = verbs::compare(left.input, right.input, {});
  RC_ASSERT(report.same);
  RC_ASSERT(report.exactness == Exactness::rounded);
  VerifyOptions exact;
  exact.tolerance_rounded = false;
  RC_ASSERT(!verbs::compare(left.input, right.input, exact).same);
}

RC_GTEST_PROP(CompareProperty, MoreThanTheBoundIsADifferenceInAnotherBasis, ()) {
  const Dtype dtype = *rc::gen::element(Dtype::f32, Dtype::bf16, Dtype::f16);
  const Lora x = wide_lora(dtype);
  RC_PRE(x.a.rows > 1);
  Lora y = in_another_basis(x);
  // The bound is at most 4 u (1 + u) sqrt(rank) sqrt(sum (|b_k| |a_k|)^2): the change is eight times that.
  double squares = 0;
  for (const Lora* lora : std::initializer_list<const Lora*>{&x, &y}) {
    for (std::int64_t k = 0; k < x.a.rows; ++k) {
      double a = 0, b = 0;
      for (std::int64_t j = 0; j < x.a.cols; ++j) a += lora->a.at(k, j) * lora->a.at(k, j);
      for (std::int64_t i = 0; i < x.b.rows; ++i) b += lora->b.at(i, k) * lora->b.at(i, k);
      squares = std::max(squares, lora->scale * lora->scale * a * b);
    }
  }
  const auto rank = static_cast<double>(x.a.rows);
  const double bound = 4 * std::ldexp(1.001, -verbs::precision_of(dtype).bits) * rank * std::sqrt(squares);
  const double change = 8 * bound / product(y.b, y.a, 1).norm();
  RC_PRE(change < 0.25);
  y.b = y.b.times(1 + change);
  const Stored left = stored(x, dtype, dtype), right = stored(y, dtype, dtype);
  RC_ASSERT(!verbs::compare(left.input, right.input, {}).same);
}

RC_GTEST_PROP(CompareProperty, InAnotherBasisADifferenceFarBelowTheNormsIsMeasured, ()) {
  const Lora x = wide_lora(Dtype::f64);
  Lora y = in_another_basis(x);
  const double change = std::ldexp(1.0, -*rc::gen::inRange(8, 34));
  for (double& v : y.b.values) v *= 1 + change;
  const Stored left = stored(x, Dtype::f64, Dtype::f64), right = stored(y, Dtype::f64, Dtype::f64);
  const VerifyReport report = verbs::compare(left.input, right.input, {});
  RC_ASSERT(!report.same);
  RC_ASSERT(std::abs(report.largest_relative - change / (1 + change)) <= 1e-4 * change);
}

}  // namespace
}  // namespace peft
