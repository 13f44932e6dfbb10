#include "low_rank/dense.h"

#include <algorithm>
#include <cmath>

namespace peft::low_rank {

Dense read(const adapter::Matrix& matrix) {
  Dense result(matrix.rows, matrix.cols);
  adapter::read(matrix, result.values);
  return result;
}

Dense transposed(const Dense& m) {
  constexpr std::int64_t kTile = 32;
  Dense result(m.cols, m.rows);
  for (std::int64_t j0 = 0; j0 < m.cols; j0 += kTile) {
    for (std::int64_t i0 = 0; i0 < m.rows; i0 += kTile) {
      for (std::int64_t j = j0; j < std::min(j0 + kTile, m.cols); ++j) {
        for (std::int64_t i = i0; i < std::min(i0 + kTile, m.rows); ++i) result.at(j, i) = m.at(i, j);
      }
    }
  }
  return result;
}

Dense first_columns(Dense m, std::int64_t count) {
  m.cols = std::min(m.cols, count);
  m.values.resize(static_cast<std::size_t>(m.rows * m.cols));
  return m;
}

Dense beside(std::span<const Dense> parts) {
  Dense result;
  result.rows = parts.front().rows;
  for (const Dense& part : parts) {
    result.cols += part.cols;
    result.values.insert(result.values.end(), part.values.begin(), part.values.end());
  }
  return result;
}

Dense below(std::span<const Dense> parts) {
  std::int64_t rows = 0;
  for (const Dense& part : parts) rows += part.rows;
  Dense result(rows, parts.front().cols);
  for (std::int64_t j = 0; j < result.cols; ++j) {
    auto to = result.column(j).begin();
    for (const Dense& part : parts) to = std::copy(part.column(j).begin(), part.column(j).end(), to);
  }
  return result;
}

void scale(Dense& m, double factor) {
  if (factor != 1) std::for_each(m.values.begin(), m.values.end(), [factor](double& v) { v *= factor; });
}

double norm(const Dense& m) {
  // Column by column: the order of the sum is that of the values, whatever the machine.
  double sum = 0;
  for (std::int64_t j = 0; j < m.cols; ++j) {
    double of_column = 0;
    for (const double v : m.column(j)) of_column += v * v;
    sum += of_column;
  }
  return std::sqrt(sum);
}

}  // namespace peft::low_rank
