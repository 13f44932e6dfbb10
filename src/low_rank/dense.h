// Matrices in fp64, stored column by column. Only the .cpp files of this stage include Eigen, which takes seconds to
// compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "adapter/view_math.h"

namespace peft::low_rank {

struct Dense {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Dense() = default;
  Dense(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  double& at(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(j * rows + i)]; }
  double at(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(j * rows + i)]; }
  std::span<double> column(std::int64_t j) { return {values.data() + j * rows, static_cast<std::size_t>(rows)}; }
  std::span<const double> column(std::int64_t j) const {
    return {values.data() + j * rows, static_cast<std::size_t>(rows)};
  }
};

Dense read(const adapter::Matrix& matrix);
Dense transposed(const Dense& m);
// The first `count` columns.
Dense first_columns(Dense m, std::int64_t count);
// Columns of all, side by side; rows of all, one below the other. At least one; the other dimension is the same in all.
Dense beside(std::span<const Dense> parts);
Dense below(std::span<const Dense> parts);
void scale(Dense& m, double factor);
double norm(const Dense& m);  // Frobenius

}  // namespace peft::low_rank
