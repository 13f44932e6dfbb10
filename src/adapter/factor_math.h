// Norms of LoRA updates without building them: dW = scale * B * A is [out, in], its factors are thin.
//
// With B = Q_B R_B and A^T = Q_A R_A, ||B A||_F = ||R_B R_A^T||_F, and R is only rank x rank. R comes from Householder
// reflections over blocks of rows: memory does not grow with the layer, and no number is squared before it is
// subtracted. This is our own code and not Eigen's HouseholderQR, because the matrix arrives in blocks, columns that
// are equal on both sides must stay exactly zero, and the order of the sums is fixed for every machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "adapter/view_math.h"
#include "peft/adapter.h"

namespace peft::adapter {

// R of a QR factorisation of a tall matrix that arrives in blocks of rows.
class TallQr {
 public:
  explicit TallQr(std::int64_t cols);
  // `block` is column-major, rows x cols, and is overwritten.
  void append(std::span<double> block, std::int64_t rows);
  // Upper triangle, column-major, cols x cols.
  std::span<const double> r() const { return r_; }
  std::span<const double> column(std::int64_t k) const {
    return r().subspan(static_cast<std::size_t>(k * cols_), static_cast<std::size_t>(cols_));
  }
  std::int64_t cols() const { return cols_; }

 private:
  std::int64_t cols_;
  std::vector<double> r_;
};

// One side of a comparison: dW = scale * sum over the listed components k of b[:, k] * a[:, k]^T.
// Both matrices have one column per rank component, so A is held transposed: a [in, rank], b [out, rank].
struct Components {
  Matrix a, b;
  double scale = 1;
  std::vector<std::int64_t>
      list;  // kNoComponent: a zero column, the partner of a component that only the other side has
};
constexpr std::int64_t kNoComponent = -1;
std::vector<std::int64_t> all_components(std::int64_t rank);  // 0, 1, ..., rank - 1
// All components of a factor.
Components components(const TensorFile& file, const Factor& factor);

// ||dW||_F.
double delta_norm(const Components& x);
double delta_norm(const TensorFile& file, const Factor& factor);

struct DeltaDifference {
  double norm_x = 0, norm_y = 0, norm_difference = 0;
  // For two lists of the same length: the root of the sum of the squared changes of the pairs. norm_difference is about
  // as large where the pairs change independently of each other. It is far smaller where the changes cancel.
  double norm_changes = 0;
  // ||dW_x - dW_y|| / max(||dW_x||, ||dW_y||); 0 if both are zero, 1 where the norms leave the range of double.
  double relative() const;
};
// in and out must be the same. If both list the same number of components, they are subtracted pair by pair first,
// which keeps a difference of one bit exact; y's a is then divided by gain[j] and its b multiplied (empty: all 1; else
// powers of two), so that a scale that sits at another place does not hide that pairs are equal.
DeltaDifference delta_difference(const Components& x, const Components& y, std::span<const double> gain = {});

// R of the QR of [a_x, a_y], and of [s_x b_x, -s_y b_y]: its columns, first those of x, have the lengths of the
// components and the angles between them.
struct JointQr {
  TallQr a, b;
  std::int64_t of_x = 0, of_y = 0;  // columns
  DeltaDifference difference() const;
};
JointQr joint_qr(const Components& x, const Components& y);

}  // namespace peft::adapter
