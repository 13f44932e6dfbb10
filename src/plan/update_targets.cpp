#include "plan/update_targets.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "base/checked.h"

namespace peft::plan {
namespace {

// An index of `count` values and the given stride as a walk down the rows of a matrix with `cols` columns.
std::optional<Steps> down(std::int64_t first, std::int64_t count, std::int64_t stride, std::int64_t rows,
                          std::int64_t cols) {
  if (count == 1) return Steps{first, 1, 1};
  if (stride < cols || stride % cols != 0) return std::nullopt;
  const auto span = checked_mul(count - 1, stride / cols);
  if (!span || *span >= rows - first) return std::nullopt;
  return Steps{first, stride / cols, count};
}

std::optional<Steps> across(std::int64_t first, std::int64_t count, std::int64_t stride, std::int64_t cols) {
  if (count == 1) return Steps{first, 1, 1};
  const auto span = checked_mul(count - 1, stride);
  if (stride < 1 || !span || *span >= cols - first) return std::nullopt;
  return Steps{first, stride, count};
}

}  // namespace

bool meet(const Steps& a, const Steps& b) {
  const std::int64_t low = std::max(a.first, b.first), high = std::min(a.last(), b.last());
  if (low > high) return false;
  const std::int64_t common = std::gcd(a.step, b.step);
  if ((b.first - a.first) % common != 0) return false;
  // The steps of the one whose numbers are rarer, until they hit the other: at most step / common of them.
  const Steps& rare = a.step >= b.step ? a : b;
  const Steps& other = a.step >= b.step ? b : a;
  std::int64_t x = rare.first + (low - rare.first + rare.step - 1) / rare.step * rare.step;
  for (std::int64_t tried = 0; tried <= other.step / common && x <= high; ++tried, x += rare.step) {
    if ((x - other.first) % other.step == 0) return true;
  }
  return false;
}

StepRange steps_in(const Steps& steps, std::int64_t begin, std::int64_t end) {
  const auto up = [&](std::int64_t x) {
    return x <= steps.first ? 0 : (x - steps.first + steps.step - 1) / steps.step;
  };
  const std::int64_t first = std::min(up(begin), steps.count);
  return {first, std::max<std::int64_t>(0, std::min(up(end), steps.count) - first)};
}

std::optional<Lattice> lattice_of(const PlannedTensor& tensor, const View& target) {
  if (tensor.rows < 1 || tensor.cols < 1 || target.rows < 1 || target.cols < 1 || target.offset < 0)
    return std::nullopt;
  const std::int64_t row = target.offset / tensor.cols, col = target.offset % tensor.cols;
  if (row >= tensor.rows) return std::nullopt;
  const auto natural_rows = down(row, target.rows, target.row_stride, tensor.rows, tensor.cols);
  const auto natural_cols = across(col, target.cols, target.col_stride, tensor.cols);
  if (natural_rows && natural_cols) return Lattice{*natural_rows, *natural_cols, false};
  const auto swapped_rows = down(row, target.cols, target.col_stride, tensor.rows, tensor.cols);
  const auto swapped_cols = across(col, target.rows, target.row_stride, tensor.cols);
  if (swapped_rows && swapped_cols) return Lattice{*swapped_rows, *swapped_cols, true};
  return std::nullopt;
}

TargetIndex::TargetIndex(const PlannedTensor& tensor) {
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>, std::size_t> known;
  const std::vector<Update>& updates = tensor.merge->updates;
  for (std::size_t u = 0; u < updates.size(); ++u) {
    const View& target = updates[u].target;
    const auto key = std::tuple(target.offset, target.rows, target.cols, target.row_stride, target.col_stride);
    const auto [it, is_new] = known.try_emplace(key, matrices.size());
    if (is_new) matrices.push_back({*lattice_of(tensor, target), {}});
    matrices[it->second].updates.push_back(static_cast<std::uint32_t>(u));
  }
  by_row = RowIndex(
      matrices.size(), [&](std::size_t i) { return matrices[i].lattice.rows.first; },
      [&](std::size_t i) { return matrices[i].lattice.rows.last() + 1; });
}

}  // namespace peft::plan
