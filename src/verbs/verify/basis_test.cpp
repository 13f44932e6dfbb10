#include "verbs/verify/basis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "peft/error.h"
#include "support/adapter_maker.h"

namespace peft {
namespace {

using namespace testing;  // NOLINT: the makers of adapters

TEST(Compare, ReorderedComponentsAreTheSameSum) {
  Dense a = kA, b = kB;
  for (std::int64_t k = 0; k < 4; ++k) {
    for (std::int64_t j = 0; j < 24; ++j) a.at(3 - k, j) = kA.at(k, j);
    for (std::int64_t i = 0; i < 16; ++i) b.at(i, 3 - k) = kB.at(i, k);
  }
  Maker x, y;
  x.pair(kDense, kA, kB), y.pair(kDense, a, b);
  const VerifyReport report = verify_pair(x, y);
  EXPECT_EQ(report.exactness, Exactness::rounded);
  EXPECT_LT(report.largest_relative, 1e-14);
}

// Components repeated with parts of their weight: another basis, of another rank.
Dense beside(const Dense& x, const Dense& y) {
  Dense result(x.rows, x.cols + y.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t k = 0; k < result.cols; ++k) result.at(i, k) = k < x.cols ? x.at(i, k) : y.at(i, k - x.cols);
  }
  return result;
}
Dense below(const Dense& x, const Dense& y) {
  Dense result(x.rows + y.rows, x.cols);
  std::copy(x.values.begin(), x.values.end(), result.values.begin());
  std::copy(y.values.begin(), y.values.end(), result.values.begin() + static_cast<std::ptrdiff_t>(x.values.size()));
  return result;
}

TEST(Compare, PartsOfAnUpdateSideBySideAreItsSum) {
  Maker x, halves, parts, wrong, cancelling;
  x.pair(kDense, kA, kB, 2);
  halves.pair(kDense, below(kA, kA), beside(kB.times(0.5), kB.times(0.5)), 2);
  parts.pair(kDense, below(kA, kA), beside(kB.times(0.25), kB.times(0.75)), 2);
  wrong.pair(kDense, below(kA, kA), beside(kB.times(0.25), kB.times(0.7501)), 2);
  const Dense other_a = random_dense(2, 24, 51), other_b = random_dense(16, 2, 52);
  cancelling.pair(kDense, below(kA, below(other_a, other_a)), beside(kB, beside(other_b, other_b.times(-1))), 2);
  for (Maker* y : {&halves, &parts, &cancelling}) {
    const VerifyReport report = verify_pair(x, *y);
    EXPECT_EQ(report.exactness, Exactness::rounded);
    EXPECT_LT(report.largest_relative, 1e-14);
    EXPECT_EQ(verify_pair(*y, x).exactness, Exactness::rounded);
    EXPECT_FALSE(verify_pair(x, *y, false).same);
  }
  EXPECT_EQ(verify_pair(halves, parts).exactness, Exactness::rounded);
  for (Maker* y : {&x, &halves, &parts}) EXPECT_EQ(verify_pair(*y, wrong).exactness, Exactness::lossy);
}

TEST(Compare, ValuesThatDifferInTheSameBasisAreNoRounding) {
  const auto place = [](double v) { return v * (1 + 4 * 0x1p-23); };
  Dense a = kA, b = kB;  // an element of A in one component, one of B in another
  a.at(0, 3) = place(a.at(0, 3));
  b.at(5, 2) = place(b.at(5, 2));
  Maker x, in_both, in_one, more;
  x.pair(kDense, kA, kB), in_both.pair(kDense, a, b), in_one.pair(kDense, kA, b);
  Dense tiny(1, 24);
  tiny.at(0, 0) = 0x1p-40;
  more.pair(kDense, below(kA, tiny), beside(kB, random_dense(16, 1, 5)));
  for (Maker* y : {&in_both, &in_one, &more}) {
    EXPECT_EQ(verify_pair(x, *y).exactness, Exactness::lossy);
    EXPECT_LT(verify_pair(x, *y).largest_relative, 1e-6);
  }
  // The same beside a scale that one side has folded into A, where every element is rounded.
  const Dense long_a = a.times(1.2345);
  Maker folded_in, scaled, spoiled;
  scaled.pair(kDense, folded(long_a, 1), b, 3);
  folded_in.pair(kDense, folded(folded(long_a, 1), 3), b);
  spoiled.pair(kDense, folded(folded(long_a, 1), 3), kB);
  EXPECT_EQ(verify_pair(scaled, folded_in).exactness, Exactness::rounded);
  EXPECT_EQ(verify_pair(scaled, spoiled).exactness, Exactness::lossy);
}

TEST(Compare, WhatIsComputedAgainFromItsOwnResultIsTheSame) {
  Dense a = folded(kA, 1.2345), b = folded(kB, 0.98765);
  Maker x, again, in_b;
  x.pair(kDense, a, b);
  in_b.pair(kDense, a, folded(b, 1 + 0x1p-23));  // A is the same to the last bit: B's values were changed
  for (double* v : {&a.at(1, 4), &b.at(9, 3)}) *v = std::nextafter(static_cast<float>(*v), 1.0F);
  again.pair(kDense, a, b);
  EXPECT_EQ(verify_pair(x, again).exactness, Exactness::rounded);
  EXPECT_EQ(verify_pair(x, in_b).exactness, Exactness::lossy);
}

TEST(Compare, AnotherBasisIsSaidWithItsBoundAndItsDifference) {
  // Components p, q against p + q, p - q.
  Dense a(4, 24), b(16, 4);
  for (std::int64_t k = 0; k < 4; k += 2) {
    for (std::int64_t j = 0; j < 24; ++j)
      a.at(k, j) = kA.at(k, j) + kA.at(k + 1, j), a.at(k + 1, j) = kA.at(k, j) - kA.at(k + 1, j);
    for (std::int64_t i = 0; i < 16; ++i)
      b.at(i, k) = (kB.at(i, k) + kB.at(i, k + 1)) / 2, b.at(i, k + 1) = (kB.at(i, k) - kB.at(i, k + 1)) / 2;
  }
  Maker x, y, wrong;
  x.pair(kDense, kA, kB, 3), y.pair(kDense, a, b.times(3)), wrong.pair(kDense, a, b.times(3.001));
  const VerifyReport report = verify_pair(x, y);
  EXPECT_TRUE(report.same);
  EXPECT_EQ(report.exactness, Exactness::rounded);
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_TRUE(report.notes[0].starts_with("1 of 1 are the same update in another basis, within one rounding (bound "))
      << report.notes[0];
  EXPECT_NE(report.notes[0].find(", measured "), std::string::npos);
  const VerifyReport exact = verify_pair(x, y, false);
  ASSERT_EQ(exact.differences.size(), 1U);
  EXPECT_TRUE(exact.differences[0].what.starts_with("the same update in another basis, within one rounding (bound "));
  const VerifyReport different = verify_pair(x, wrong);
  ASSERT_EQ(different.differences.size(), 1U);
  EXPECT_NEAR(different.largest_relative, 0.001 / 3.001, 1e-6);
  EXPECT_TRUE(different.differences[0].what.starts_with("more than one rounding explains (bound "))
      << different.differences[0].what;
}
}  // namespace
}  // namespace peft
