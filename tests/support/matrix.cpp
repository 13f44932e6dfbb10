#include "support/matrix.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace peft::testing {
namespace {

double widen_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = (bits & 0x8000) ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::nan("") : sign * HUGE_VAL;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

template <typename T>
T read(std::span<const std::byte> bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

double element(std::span<const std::byte> bytes, Dtype dtype, std::size_t index) {
  switch (dtype) {
    case Dtype::f64:
      return read<double>(bytes, index);
    case Dtype::f32:
      return static_cast<double>(read<float>(bytes, index));
    case Dtype::f16:
      return widen_half(read<std::uint16_t>(bytes, index));
    case Dtype::bf16:
      return static_cast<double>(std::bit_cast<float>(std::uint32_t{read<std::uint16_t>(bytes, index)} << 16));
    default:
      throw std::runtime_error("a test tensor has dtype " + std::string(info(dtype).name));
  }
}

}  // namespace

Matrix transposed(const Matrix& m) {
  Matrix t(m.cols, m.rows);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t j = 0; j < m.cols; ++j) t.at(j, i) = m.at(i, j);
  return t;
}

Matrix product(const Matrix& b, const Matrix& a) {
  if (b.cols != a.rows) throw std::runtime_error("factors of different rank");
  Matrix p(b.rows, a.cols);
  for (std::int64_t i = 0; i < b.rows; ++i)
    for (std::int64_t k = 0; k < b.cols; ++k)
      for (std::int64_t j = 0; j < a.cols; ++j) p.at(i, j) += b.at(i, k) * a.at(k, j);
  return p;
}

Matrix scaled(double s, Matrix m) {
  for (double& value : m.values) value *= s;
  return m;
}

Matrix absolute(Matrix m) {
  for (double& value : m.values) value = std::fabs(value);
  return m;
}

Matrix rows_of(const Matrix& m, std::int64_t first, std::int64_t count, std::int64_t step) {
  Matrix part(count, m.cols);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j < m.cols; ++j) part.at(i, j) = m.at(first + i * step, j);
  return part;
}

Matrix cols_of(const Matrix& m, std::int64_t first, std::int64_t count, std::int64_t step) {
  Matrix part(m.rows, count);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t j = 0; j < count; ++j) part.at(i, j) = m.at(i, first + j * step);
  return part;
}

bool same_shape(const Matrix& x, const Matrix& y) { return x.rows == y.rows && x.cols == y.cols; }

bool same_bits(const Matrix& x, const Matrix& y) {
  return same_shape(x, y) && std::memcmp(x.values.data(), y.values.data(), x.values.size() * sizeof(double)) == 0;
}

FusedPair fuse(const std::vector<ExpertFactors>& experts, bool turned, bool grouped) {
  const auto count = static_cast<std::int64_t>(experts.size());
  const Matrix first_a = turned ? transposed(experts[0].b) : experts[0].a;
  const std::int64_t rank = first_a.rows;
  FusedPair pair{Matrix(count * rank, first_a.cols),
                 Matrix(turned ? experts[0].a.cols : experts[0].b.rows, rank * count)};
  for (std::int64_t e = 0; e < count; ++e) {
    const ExpertFactors& expert = experts[static_cast<std::size_t>(e)];
    const Matrix a = turned ? transposed(expert.b) : expert.a, b = turned ? transposed(expert.a) : expert.b;
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < a.cols; ++j) pair.a.at(e * rank + k, j) = a.at(k, j);
      for (std::int64_t i = 0; i < b.rows; ++i) pair.b.at(i, grouped ? e * rank + k : k * count + e) = b.at(i, k);
    }
  }
  return pair;
}

std::vector<double> elements(const TensorFile& file, const TensorInfo& tensor) {
  std::size_t count = 1;
  for (const std::int64_t d : tensor.shape) count *= static_cast<std::size_t>(d);
  const auto bytes = file.bytes(tensor);
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = element(bytes, tensor.dtype, i);
  return values;
}

Matrix matrix_of(const TensorFile& file, const TensorInfo& tensor) {
  const auto& shape = tensor.shape;
  if (shape.empty() || shape.size() > 2) throw std::runtime_error("not a matrix: " + std::string(tensor.name));
  return {shape.size() == 2 ? shape[0] : 1, shape.back(), elements(file, tensor)};
}

Matrix matrix_of(const TensorFile& file, const View& view) {
  const TensorInfo& tensor = file.tensors()[view.tensor];
  const auto bytes = file.bytes(tensor);
  Matrix m(view.rows, view.cols);
  for (std::int64_t i = 0; i < view.rows; ++i)
    for (std::int64_t j = 0; j < view.cols; ++j)
      m.at(i, j) = element(bytes, tensor.dtype,
                           static_cast<std::size_t>(view.offset + i * view.row_stride + j * view.col_stride));
  return m;
}

}  // namespace peft::testing
