// Random factors, rewritten at random in ways that keep the function, and in ways that do not.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <vector>

#include "adapter/test_tensors.h"
#include "verbs/compare.h"

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
  const VerifyReport report = compare(left.input, right.input, {});
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
  const VerifyReport report = compare(left.input, right.input, {});
  const Dense dx = product(x.b, x.a, x.scale), dy = product(y.b, y.a, y.scale);
  Dense difference = dx;
  for (std::size_t i = 0; i < difference.values.size(); ++i) difference.values[i] -= dy.values[i];
  const double want = difference.norm() / std::max(dx.norm(), dy.norm());
  RC_ASSERT(!report.same);
  RC_ASSERT(report.exactness == Exactness::lossy);
  RC_ASSERT(std::abs(report.largest_relative - want) <= 1e-6 * want + 1e-15);
}

}  // namespace
}  // namespace peft
