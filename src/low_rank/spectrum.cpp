#include "low_rank/spectrum.h"

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>
#include <array>
#include <cmath>

namespace peft::low_rank {
namespace {

using Matrix = Eigen::MatrixXd;
using Mapped = Eigen::Map<const Matrix>;

constexpr std::int64_t kSmall = 160;  // up to here the whole SVD is as quick as an iteration
constexpr std::int64_t kExtra = 8;    // columns of the iteration beyond the rank: they speed up the last ones
constexpr int kMostIterations = 24;
constexpr double kEnough = 1e-11;     // the iteration ends when the energy grows by less
constexpr double kNothing = 0x1p-40;  // of the largest singular value: smaller ones are rounding errors of fp64

Mapped map(const Dense& m) { return {m.values.data(), m.rows, m.cols}; }

Dense dense(const Matrix& m) {
  Dense result(m.rows(), m.cols());
  std::copy(m.data(), m.data() + m.size(), result.values.begin());
  return result;
}

void fix_signs(Matrix& u, Matrix& v) {
  for (Eigen::Index k = 0; k < u.cols(); ++k) {
    Eigen::Index at = 0;
    u.col(k).cwiseAbs().maxCoeff(&at);
    if (u(at, k) < 0) {
      u.col(k) *= -1;
      v.col(k) *= -1;
    }
  }
}

struct Parts {
  Matrix u, v;
  Eigen::VectorXd s;
};

Parts svd(const Matrix& m) {
  constexpr unsigned kThin = Eigen::ComputeThinU | Eigen::ComputeThinV;
  if (std::min(m.rows(), m.cols()) <= 64) {
    const Eigen::JacobiSVD<Matrix> result(m, kThin);
    return {result.matrixU(), result.matrixV(), result.singularValues()};
  }
  const Eigen::BDCSVD<Matrix> result(m, kThin);
  return {result.matrixU(), result.matrixV(), result.singularValues()};
}

struct Qr {
  Matrix q, r;  // q thin
};

Qr factorise(const Matrix& m) {
  const Eigen::HouseholderQR<Matrix> qr(m);
  const Eigen::Index k = std::min(m.rows(), m.cols());
  Qr result;
  result.q = qr.householderQ() * Matrix::Identity(m.rows(), k);
  result.r = qr.matrixQR().topRows(k).triangularView<Eigen::Upper>();
  return result;
}

Matrix basis(const Matrix& m) { return factorise(m).q; }

Spectrum finish(Parts parts, std::int64_t rank) {
  const Eigen::Index k = std::min<Eigen::Index>(rank, parts.s.size());
  Matrix u = parts.u.leftCols(k), v = parts.v.leftCols(k);
  fix_signs(u, v);
  return {dense(u), dense(v), {parts.s.data(), parts.s.data() + k}};
}

// The same start on every machine: a counter, mixed (splitmix64), as numbers in [-1, 1).
Matrix start(Eigen::Index rows, Eigen::Index cols) {
  Matrix m(rows, cols);
  std::uint64_t state = 0;
  for (Eigen::Index i = 0; i < m.size(); ++i) {
    state += 0x9e3779b97f4a7c15;
    std::uint64_t z = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    m.data()[i] = static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
  }
  return m;
}

// SVD of the part of m that lies in the span of q: of q q^T m.
Parts within(const Matrix& q, const Matrix& projected) {  // projected: m^T q [n, k]
  const Qr qr = factorise(projected);
  Parts small = svd(qr.r);  // r = u s v^T, so q^T m = r^T q_p^T = v s (q_p u)^T
  return {q * small.v, qr.q * small.u, small.s};
}

Parts iterate(const Mapped& m, std::int64_t rank) {
  const Eigen::Index k = std::min<Eigen::Index>(rank + kExtra, std::min(m.rows(), m.cols()));
  Matrix q = basis(m * start(m.cols(), k));
  double before = -1;
  for (int i = 0;; ++i) {
    const Matrix projected = m.transpose() * q;
    const double energy = projected.squaredNorm();
    if (energy - before <= kEnough * energy || i == kMostIterations) return within(q, projected);
    before = energy;
    q = basis(m * basis(projected));
  }
}

}  // namespace

Spectrum spectrum_of_product(const Dense& b, const Dense& a) {
  const Qr left = factorise(map(b)), right = factorise(map(a));
  Parts small = svd(left.r * right.r.transpose());
  return finish({left.q * small.u, right.q * small.v, small.s}, small.s.size());
}

Spectrum spectrum_of(const Dense& m, std::int64_t rank) {
  const std::int64_t side = std::min(m.rows, m.cols);
  if (side <= kSmall || 3 * rank >= side) return finish(svd(map(m)), rank);
  return finish(iterate(map(m), rank), rank);
}

double spectral_norm(const Dense& m) {
  if (m.values.empty()) return 0;
  const Matrix gram = map(m).transpose() * map(m);
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(gram, Eigen::EigenvaluesOnly);
  return std::sqrt(std::max(solver.eigenvalues().maxCoeff(), 0.0));
}

std::int64_t numerical_rank(const Spectrum& spectrum, std::int64_t limit, double floor) {
  if (spectrum.s.empty()) return 0;
  const double least = std::max(floor, kNothing * spectrum.s.front());
  const auto end = std::find_if(spectrum.s.begin(), spectrum.s.end(), [least](double s) { return !(s > least); });
  return std::min(limit, static_cast<std::int64_t>(end - spectrum.s.begin()));
}

Factors split(Spectrum spectrum, std::int64_t rank) {
  Factors result{first_columns(std::move(spectrum.u), rank), first_columns(std::move(spectrum.v), rank)};
  for (std::int64_t k = 0; k < result.b.cols; ++k) {
    const double root = std::sqrt(spectrum.s[static_cast<std::size_t>(k)]);
    for (double& v : result.b.column(k)) v *= root;
    for (double& v : result.a.column(k)) v *= root;
  }
  return result;
}

Dense product(const Dense& b, const Dense& a) {
  Dense result(b.rows, a.rows);
  Eigen::Map<Matrix>(result.values.data(), result.rows, result.cols).noalias() = map(b) * map(a).transpose();
  return result;
}

double product_norm(const Dense& b, const Dense& a) {
  return (factorise(map(b)).r * factorise(map(a)).r.transpose()).norm();
}

double difference_norm(const Factors& x, const Factors& y) {
  Dense minus = y.b;
  scale(minus, -1);
  return product_norm(beside(std::array{x.b, std::move(minus)}), beside(std::array{x.a, y.a}));
}

double residual_norm(Dense& m, const Factors& x) {
  Eigen::Map<Matrix>(m.values.data(), m.rows, m.cols).noalias() -= map(x.b) * map(x.a).transpose();
  return norm(m);
}

}  // namespace peft::low_rank
