#include "verbs/verify/basis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "low_rank/spectrum.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {
namespace {

using adapter::Components;
using adapter::DeltaDifference;
using adapter::JointQr;
using adapter::kNoComponent;
using adapter::Matrix;
using adapter::TallQr;

constexpr double kParallel = 0.99;            // cosine; below it, one vector is not a rounding of the other
constexpr double kSameCosine = 1e-9;          // cosines that are no further apart say the same
constexpr double kCancelledChanges = 0x1p-5;  // of the changes: what changes independently does not cancel so far
constexpr double kArithmetic = 0x1p-40;       // what an SVD in fp64 loses, and what combine cuts off
constexpr std::int64_t kRowsAtOnce = 256;

double dot(std::span<const double> x, std::span<const double> y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// Lengths of the vectors, and angles between those of x and those of y.
class Angles {
 public:
  explicit Angles(const TallQr& qr) : qr_(qr) {
    for (std::int64_t k = 0; k < qr.cols(); ++k) lengths_.push_back(std::sqrt(dot(qr.column(k), qr.column(k))));
  }
  double length(std::int64_t k) const { return lengths_[static_cast<std::size_t>(k)]; }
  double cosine(std::int64_t i, std::int64_t j) const {
    const double lengths = length(i) * length(j);
    return lengths == 0 ? 0 : std::abs(dot(qr_.column(i), qr_.column(j))) / lengths;
  }
  // The power of two that takes vector i nearest to vector j.
  double gain(std::int64_t i, std::int64_t j) const {
    const double gain = nearest_power_of_two(dot(qr_.column(i), qr_.column(j)) / (length(i) * length(i)));
    return gain == 0 || !std::isfinite(gain) ? 1 : gain;
  }
  // The vectors divided by their lengths.
  double norm_of_directions(std::span<const std::int64_t> list) const {
    low_rank::Dense directions(qr_.cols(), static_cast<std::int64_t>(list.size()));
    for (std::size_t j = 0; j < list.size(); ++j) {
      const auto from = qr_.column(list[j]);
      std::transform(from.begin(), from.end(), directions.column(static_cast<std::int64_t>(j)).begin(),
                     [&](double v) { return v / length(list[j]); });
    }
    return low_rank::spectral_norm(directions);
  }

 private:
  const TallQr& qr_;
  std::vector<double> lengths_;
};

// How the elements of two vectors compare.
struct Elements {
  Match match;
  bool one_place = true;  // none is off by more than a last place of its own or of an element of usual size
};

// Column j of x times factor_x against column k of y times factor_y. `length`: of column j.
Elements compare_columns(const Matrix& x, std::int64_t j, double factor_x, const Matrix& y, std::int64_t k,
                         double factor_y, double length) {
  const double usual = std::abs(factor_x) * length / std::sqrt(static_cast<double>(x.rows));
  const double places = std::ldexp(2.0, -std::min(precision_of(x.dtype).bits, precision_of(y.dtype).bits));
  std::vector<double> vx(kRowsAtOnce), vy(kRowsAtOnce);
  Elements result;
  for (std::int64_t first = 0; first < x.rows && (result.match.near || result.one_place); first += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, x.rows - first);
    adapter::read(x.col_range(j, 1).row_range(first, count), vx);
    adapter::read(y.col_range(k, 1).row_range(first, count), vy);
    const auto size = static_cast<std::size_t>(count);
    result.match &= match({vx.data(), size}, {x.dtype, factor_x}, {vy.data(), size}, {y.dtype, factor_y});
    for (std::size_t i = 0; i < size; ++i) {
      const double p = vx[i] * factor_x, q = vy[i] * factor_y;
      result.one_place = result.one_place && std::abs(p - q) <= places * std::max({std::abs(p), std::abs(q), usual});
    }
  }
  return result;
}

// A component of x and the one of y that is most like it; either may be missing. Numbers count the lists.
struct Pair {
  std::int64_t x = kNoComponent, y = kNoComponent;
  double gain = 1;  // y's a is about gain times x's, and y's b with the scale about x's divided by gain
  Match whole{false, false};
  bool matched_a = false, matched_b = false;  // the elements of that vector are equal or rounded once
  bool one_place = false;                     // no element of either is off by more than a last place
};

class Comparison {
 public:
  Comparison(const Components& x, const Components& y)
      : x_(x), y_(y), qr_(adapter::joint_qr(x, y)), a_(qr_.a), b_(qr_.b) {}

  Verdict run() {
    find_pairs();
    const DeltaDifference difference = measure();
    const double relative = difference.relative();
    const auto whole = [&](bool Match::*how) {
      return std::all_of(pairs_.begin(), pairs_.end(), [how](const Pair& pair) { return pair.whole.*how; });
    };
    if (whole(&Match::exact)) return {Exactness::rounded, relative, "the same sum of reordered rank components"};
    if (whole(&Match::near))
      return {Exactness::rounded, relative, "equal up to one rounding of each element, in another order"};
    if (same_basis() && difference.norm_difference > kCancelledChanges * difference.norm_changes)
      return {Exactness::lossy, relative, {}};
    const double bound = rounding_bound() / std::max(difference.norm_x, difference.norm_y);
    const bool explained = relative <= bound;
    const std::string what = fmt::format(
        "{} (bound {:.2g}, measured {:.2g})",
        explained ? "the same update in another basis, within one rounding" : "more than one rounding explains", bound,
        relative);
    return {explained ? Exactness::rounded : Exactness::lossy, relative, what, bound};
  }

 private:
  bool is_live(std::int64_t column) const { return a_.length(column) > 0 && b_.length(column) > 0; }

  // Each component of x takes the free one of y whose two vectors are most nearly parallel to its own; where several
  // are equally so, the one at the same place.
  void find_pairs() {
    std::vector<bool> taken(y_.list.size());
    for (std::int64_t i = 0; i < qr_.of_x; ++i) {
      if (!is_live(i)) continue;
      ++live_x_;
      std::int64_t best = kNoComponent;
      double most = 0;
      const auto try_component = [&](std::int64_t k) {
        const std::int64_t column = qr_.of_x + k;
        if (taken[static_cast<std::size_t>(k)] || !is_live(column)) return;
        const double cosine_a = a_.cosine(i, column), cosine_b = b_.cosine(i, column);
        if (std::max(cosine_a, cosine_b) < kParallel || cosine_a + cosine_b <= most + kSameCosine) return;
        best = k;
        most = cosine_a + cosine_b;
      };
      if (i < qr_.of_y) try_component(i);
      for (std::int64_t k = 0; k < qr_.of_y; ++k) try_component(k);
      if (best != kNoComponent) taken[static_cast<std::size_t>(best)] = true;
      pairs_.push_back(best == kNoComponent ? Pair{.x = i} : pair_of(i, best));
    }
    for (std::int64_t k = 0; k < qr_.of_y; ++k) {
      if (!is_live(qr_.of_x + k)) continue;
      ++live_y_;
      if (!taken[static_cast<std::size_t>(k)]) pairs_.push_back({.x = kNoComponent, .y = k});
    }
  }

  // As in factors.cpp: the scale sits on one of the two vectors, and a power of two on either.
  Pair pair_of(std::int64_t i, std::int64_t k) const {
    const std::int64_t column = qr_.of_x + k;
    const double by_a = a_.gain(i, column);
    // The columns of b are the scaled ones, y's with a minus.
    const double by_b = nearest_power_of_two(-b_.gain(i, column) * x_.scale / y_.scale);
    const std::int64_t j = x_.list[static_cast<std::size_t>(i)], l = y_.list[static_cast<std::size_t>(k)];
    const auto of_a = [&](double factor_x, double factor_y) {
      return compare_columns(x_.a, j, factor_x, y_.a, l, factor_y, a_.length(i));
    };
    const auto of_b = [&](double factor_x, double factor_y) {
      return compare_columns(x_.b, j, factor_x, y_.b, l, factor_y, b_.length(i) / std::abs(x_.scale));
    };
    const auto [plain_a, place_a] = of_a(1, 1 / by_a);
    const auto [scaled_b, place_scaled_b] = of_b(x_.scale, y_.scale * by_a);
    const auto [plain_b, place_b] = of_b(1, 1 / by_b);
    const auto [scaled_a, place_scaled_a] = of_a(x_.scale, y_.scale * by_b);
    Pair pair{.x = i, .y = k};
    const bool follows_a = plain_a.near || scaled_b.near, follows_b = plain_b.near || scaled_a.near;
    const bool nearer_a = a_.cosine(i, column) >= b_.cosine(i, column);
    pair.gain = follows_a || (!follows_b && nearer_a) ? by_a : x_.scale / (y_.scale * by_b);
    pair.whole.exact = (plain_a.exact && scaled_b.exact) || (plain_b.exact && scaled_a.exact);
    pair.whole.near = (plain_a.near && scaled_b.near) || (plain_b.near && scaled_a.near);
    pair.matched_a = plain_a.near || scaled_a.near;
    pair.matched_b = plain_b.near || scaled_b.near;
    pair.one_place = (place_a && place_scaled_b) || (place_b && place_scaled_a);
    return pair;
  }

  // Pairs are subtracted before they are multiplied: what is equal in both cancels exactly.
  DeltaDifference measure() const {
    const bool any = std::any_of(pairs_.begin(), pairs_.end(),
                                 [](const Pair& p) { return p.x != kNoComponent && p.y != kNoComponent; });
    if (!any) return qr_.difference();
    Components x = x_, y = y_;
    x.list.clear(), y.list.clear();
    std::vector<double> gain;
    for (const Pair& pair : pairs_) {
      const auto number = [](const Components& side, std::int64_t i) {
        return i == kNoComponent ? kNoComponent : side.list[static_cast<std::size_t>(i)];
      };
      x.list.push_back(number(x_, pair.x));
      y.list.push_back(number(y_, pair.y));
      gain.push_back(pair.gain);
    }
    return adapter::delta_difference(x, y, gain);
  }

  bool same_basis() const {
    const auto count = [this](auto has) { return std::count_if(pairs_.begin(), pairs_.end(), has); };
    const auto a = count([](const Pair& pair) { return pair.matched_a; });
    const auto b = count([](const Pair& pair) { return pair.matched_b; });
    if (a + b == 0 || a + b < std::min(live_x_, live_y_)) return false;
    // What a computation that is done again gives: both A and B change, by a last place here and there.
    const auto all = static_cast<std::ptrdiff_t>(pairs_.size());
    const bool computed_again = a < all && b < all && count([](const Pair& pair) { return pair.one_place; }) == all;
    return !computed_again;
  }

  // Of what is not equal in both sides.
  double rounding_bound() const {
    std::vector<std::int64_t> of_x, of_y;
    for (const Pair& pair : pairs_) {
      if (pair.whole.exact) continue;
      if (pair.x != kNoComponent) of_x.push_back(pair.x);
      if (pair.y != kNoComponent) of_y.push_back(qr_.of_x + pair.y);
    }
    return bound_of(x_, of_x) + bound_of(y_, of_y);
  }

  // The bound of one side, as basis.h derives it.
  double bound_of(const Components& side, std::span<const std::int64_t> columns) const {
    const Precision precision_a = precision_of(side.a.dtype), precision_b = precision_of(side.b.dtype);
    const auto unit = [](const Precision& p) { return std::ldexp(1.0, -p.bits); };
    const auto subnormal = [](const Precision& p, std::int64_t elements) {
      return std::ldexp(std::sqrt(static_cast<double>(elements)), p.least_exponent - p.bits);
    };
    double squares_a = 0, squares_b = 0, products = 0, squares = 0;
    for (const std::int64_t k : columns) {
      const double a = a_.length(k), b = b_.length(k);
      const double moved_a = unit(precision_a) * a + subnormal(precision_a, side.a.rows);
      const double moved_b = unit(precision_b) * b + std::abs(side.scale) * subnormal(precision_b, side.b.rows);
      squares_a += moved_a * b * moved_a * b;
      squares_b += moved_b * a * moved_b * a;
      products += moved_a * moved_b;
      squares += a * b * a * b;
    }
    const double norm_a = a_.norm_of_directions(columns), norm_b = b_.norm_of_directions(columns);
    const double arithmetic = kArithmetic * std::sqrt(static_cast<double>(columns.size()));
    return norm_a * std::sqrt(squares_b) + norm_b * std::sqrt(squares_a) + products +
           arithmetic * norm_a * std::sqrt(squares);
  }

  const Components &x_, &y_;
  const JointQr qr_;
  const Angles a_, b_;
  std::vector<Pair> pairs_;
  std::int64_t live_x_ = 0, live_y_ = 0;
};

}  // namespace

Verdict compare_bases(const Components& x, const Components& y) { return Comparison(x, y).run(); }

}  // namespace peft::verbs
