#include "adapter/factor_math.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace peft::adapter {
namespace {

constexpr std::int64_t kBlockRows = 128;  // with two times rank 16, a block stays in the first-level cache

// Eight sums side by side: the compiler may use vector registers, and the order is the same on every machine.
double dot(const double* x, const double* y, std::int64_t n) {
  double sums[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += x[i + k] * y[i + k];
  }
  for (; i < n; ++i) sums[0] += x[i] * y[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void add_scaled(double* y, double factor, const double* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// ||X Y^T||_F of two column-major matrices with `terms` columns each.
double product_norm(std::span<const double> x, std::int64_t x_rows, std::span<const double> y, std::int64_t y_rows,
                    std::int64_t terms) {
  double sum = 0;
  std::vector<double> column(static_cast<std::size_t>(x_rows));
  for (std::int64_t j = 0; j < y_rows; ++j) {
    std::fill(column.begin(), column.end(), 0.0);
    for (std::int64_t k = 0; k < terms; ++k)
      add_scaled(column.data(), y[k * y_rows + j], x.data() + k * x_rows, x_rows);
    sum += dot(column.data(), column.data(), x_rows);
  }
  return std::sqrt(sum);
}

// Columns first .. first + count of R.
std::span<const double> columns(const TallQr& qr, std::int64_t first, std::int64_t count) {
  return qr.r().subspan(static_cast<std::size_t>(first * qr.cols()), static_cast<std::size_t>(count * qr.cols()));
}

std::vector<double> combine(std::span<const double> x, double factor, std::span<const double> y) {
  std::vector<double> sum(x.begin(), x.end());
  add_scaled(sum.data(), factor, y.data(), static_cast<std::int64_t>(sum.size()));
  return sum;
}

// The listed columns of rows first .. first + count, column j times factor (and gain[j], or its inverse).
void read_components(const Matrix& matrix, const std::vector<std::int64_t>& list, std::int64_t first,
                     std::int64_t count, double factor, std::span<const double> gain, bool divide, double* out) {
  std::vector<std::int64_t> present = list;
  std::replace(present.begin(), present.end(), kNoComponent, std::int64_t{0});
  read_columns(matrix.row_range(first, count), present, {out, list.size() * count});
  for (std::size_t j = 0; j < list.size(); ++j) {
    if (list[j] == kNoComponent) std::fill_n(out + static_cast<std::int64_t>(j) * count, count, 0.0);
    const double times = gain.empty() ? factor : divide ? factor / gain[j] : factor * gain[j];
    double* column = out + static_cast<std::int64_t>(j) * count;
    if (times != 1) std::for_each(column, column + count, [times](double& v) { v *= times; });
  }
}

// QR of [x, y] side by side. `subtract_x`: the first half becomes x - y; `subtract_y`: the second half becomes x - y.
struct Stack {
  const Matrix &x, &y;
  const std::vector<std::int64_t>&list_x, &list_y;
  double factor_x = 1, factor_y = 1;
  std::span<const double> gain;
  bool divide = false, subtract_x = false, subtract_y = false;

  TallQr factorise() const {
    const auto nx = static_cast<std::int64_t>(list_x.size()), ny = static_cast<std::int64_t>(list_y.size());
    TallQr qr(nx + ny);
    std::vector<double> block(static_cast<std::size_t>((nx + ny) * kBlockRows));
    for (std::int64_t first = 0; first < x.rows; first += kBlockRows) {
      const std::int64_t count = std::min(kBlockRows, x.rows - first);
      double *left = block.data(), *right = left + nx * count;
      read_components(x, list_x, first, count, factor_x, {}, false, left);
      read_components(y, list_y, first, count, factor_y, gain, divide, right);
      if (subtract_x) add_scaled(left, -1, right, nx * count);
      if (subtract_y) {
        for (std::int64_t i = 0; i < nx * count; ++i) right[i] = left[i] - right[i];
      }
      qr.append({block.data(), static_cast<std::size_t>((nx + ny) * count)}, count);
    }
    return qr;
  }
};

// dW_x - dW_y = (sx Bx - sy By) Ax + sy By (Ax - Ay): what is equal in both cancels exactly.
DeltaDifference paired_difference(const Components& x, const Components& y, std::span<const double> gain) {
  const auto n = static_cast<std::int64_t>(x.list.size());
  const TallQr p = Stack{.x = x.b,
                         .y = y.b,
                         .list_x = x.list,
                         .list_y = y.list,
                         .factor_x = x.scale,
                         .factor_y = y.scale,
                         .gain = gain,
                         .divide = false,
                         .subtract_x = true,
                         .subtract_y = false}
                       .factorise();
  const TallQr q = Stack{.x = x.a,
                         .y = y.a,
                         .list_x = x.list,
                         .list_y = y.list,
                         .factor_x = 1,
                         .factor_y = 1,
                         .gain = gain,
                         .divide = true,
                         .subtract_x = false,
                         .subtract_y = true}
                       .factorise();
  const auto b_difference = columns(p, 0, n), b_y = columns(p, n, n), a_x = columns(q, 0, n),
             a_difference = columns(q, n, n);
  const auto b_x = combine(b_difference, 1, b_y), a_y = combine(a_x, -1, a_difference);
  double changes = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    const auto length = [](const TallQr& qr, std::int64_t at) {
      const double* values = qr.column(at).data();
      return std::sqrt(dot(values, values, qr.cols()));
    };
    changes = std::hypot(changes, length(p, k) * length(q, k), length(p, n + k) * length(q, n + k));
  }
  return {.norm_x = product_norm(b_x, 2 * n, a_x, 2 * n, n),
          .norm_y = product_norm(b_y, 2 * n, a_y, 2 * n, n),
          .norm_difference = product_norm(p.r(), 2 * n, q.r(), 2 * n, 2 * n),
          .norm_changes = changes};
}

}  // namespace

TallQr::TallQr(std::int64_t cols) : cols_(cols), r_(static_cast<std::size_t>(cols * cols)) {}

void TallQr::append(std::span<double> block, std::int64_t rows) {
  // Columns that are zero, here and so far, stay zero: what is equal in both sides of a comparison costs nothing.
  std::vector<std::int64_t> live;
  for (std::int64_t k = 0; k < cols_; ++k) {
    const auto zero = [](double v) { return v == 0; };
    const double *column = block.data() + k * rows, *above = r_.data() + k * cols_;
    if (!std::all_of(column, column + rows, zero) || !std::all_of(above, above + k + 1, zero)) live.push_back(k);
  }
  // R is upper triangular, so the reflection of column k touches only R[k, k..] and the new rows.
  for (std::size_t at = 0; at < live.size(); ++at) {
    const std::int64_t k = live[at];
    double* v = block.data() + k * rows;
    const double below = dot(v, v, rows);
    if (below == 0) continue;
    double& diagonal = r_[static_cast<std::size_t>(k * cols_ + k)];
    const double norm = std::hypot(diagonal, std::sqrt(below));
    const double reflected = diagonal > 0 ? -norm : norm;
    const double head = diagonal - reflected, tau = -head / reflected;
    for (std::int64_t i = 0; i < rows; ++i) v[i] /= head;
    diagonal = reflected;
    for (std::size_t next = at + 1; next < live.size(); ++next) {
      const std::int64_t j = live[next];
      double* column = block.data() + j * rows;
      double& above = r_[static_cast<std::size_t>(j * cols_ + k)];
      const double weight = tau * (above + dot(v, column, rows));
      above -= weight;
      add_scaled(column, -weight, v, rows);
    }
  }
}

std::vector<std::int64_t> all_components(std::int64_t rank) {
  std::vector<std::int64_t> list(static_cast<std::size_t>(rank));
  std::iota(list.begin(), list.end(), std::int64_t{0});
  return list;
}

Components components(const TensorFile& file, const Factor& factor) {
  return {bind(file, factor.a).transposed(), bind(file, factor.b), factor.scale, all_components(factor.rank)};
}

double delta_norm(const Components& x) {
  const Components none{x.a, x.b, 1, {}};
  return joint_qr(x, none).difference().norm_x;
}

double delta_norm(const TensorFile& file, const Factor& factor) { return delta_norm(components(file, factor)); }

double DeltaDifference::relative() const {
  const double largest = std::max(norm_x, norm_y);
  if (largest == 0 && norm_difference == 0) return 0;
  const double ratio = norm_difference / largest;
  return std::isfinite(ratio) ? ratio : 1;
}

JointQr joint_qr(const Components& x, const Components& y) {
  const Stack of_a{.x = x.a, .y = y.a, .list_x = x.list, .list_y = y.list, .factor_x = 1, .factor_y = 1, .gain = {}};
  const Stack of_b{
      .x = x.b, .y = y.b, .list_x = x.list, .list_y = y.list, .factor_x = x.scale, .factor_y = -y.scale, .gain = {}};
  return {of_a.factorise(), of_b.factorise(), static_cast<std::int64_t>(x.list.size()),
          static_cast<std::int64_t>(y.list.size())};
}

DeltaDifference JointQr::difference() const {
  const std::int64_t n = of_x + of_y;
  return {.norm_x = product_norm(columns(b, 0, of_x), n, columns(a, 0, of_x), n, of_x),
          .norm_y = product_norm(columns(b, of_x, of_y), n, columns(a, of_x, of_y), n, of_y),
          .norm_difference = product_norm(b.r(), n, a.r(), n, n)};
}

DeltaDifference delta_difference(const Components& x, const Components& y, std::span<const double> gain) {
  return x.list.size() == y.list.size() ? paired_difference(x, y, gain) : joint_qr(x, y).difference();
}

}  // namespace peft::adapter
