// Dense fp64 matrices for the tests: what the oracle computes with. Small and slow on purpose.
#pragma once

#include <cstdint>
#include <vector>

#include "peft/safetensors.h"

namespace peft::testing {

struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;  // row by row

  Matrix() = default;
  Matrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  Matrix(std::int64_t r, std::int64_t c, std::vector<double> v) : rows(r), cols(c), values(std::move(v)) {}
  double& at(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double at(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

Matrix transposed(const Matrix& m);
Matrix product(const Matrix& b, const Matrix& a);  // b * a
Matrix scaled(double s, Matrix m);
Matrix absolute(Matrix m);
Matrix rows_of(const Matrix& m, std::int64_t first, std::int64_t count, std::int64_t step = 1);
Matrix cols_of(const Matrix& m, std::int64_t first, std::int64_t count, std::int64_t step = 1);
bool same_shape(const Matrix& x, const Matrix& y);
bool same_bits(const Matrix& x, const Matrix& y);  // -0.0 and 0.0 differ, NaN equals itself

// One fused pair from per-expert factors: A row e*r + k; B column k*E + e, or e*r + k when `grouped`.
// `turned`: stored the other way round, each expert's A and B trading places as transposes.
struct FusedPair {
  Matrix a, b;
};
struct ExpertFactors {
  Matrix a, b;  // [r, in], [out, r]
};
FusedPair fuse(const std::vector<ExpertFactors>& experts, bool turned, bool grouped);

// A tensor's elements, widened (every floating dtype up to F64 widens exactly). Throws std::runtime_error for others.
std::vector<double> elements(const TensorFile& file, const TensorInfo& tensor);
// A 2-D tensor, or a 1-D one as one row.
Matrix matrix_of(const TensorFile& file, const TensorInfo& tensor);
// What a View says, read element by element: what the library's factors are compared by.
Matrix matrix_of(const TensorFile& file, const View& view);

}  // namespace peft::testing
