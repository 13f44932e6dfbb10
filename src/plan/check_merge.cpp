#include <algorithm>
#include <cmath>
#include <vector>

#include "base/float_formats.h"
#include "plan/lattice.h"
#include "plan/view_check.h"

namespace peft::plan {
namespace {

void check_factor(const TensorScope& scope, const View& view, std::string_view what) {
  scope.check_view(view, what);
  const TensorInfo& source = scope.source_of(view, what);
  scope.require(is_float(source.dtype), "a factor's dtype cannot be computed with", "{}", source.dtype_name);
}

Lattice check_update(const TensorScope& scope, const Update& update) {
  check_factor(scope, update.a, "an update's A");
  const View& target = update.target;
  const bool has_b = update.b.rows != 0;
  if (has_b) check_factor(scope, update.b, "an update's B");
  scope.require(
      update.a.cols == target.cols && (!has_b || (update.b.rows == target.rows && update.b.cols == update.a.rows)),
      "an update's factors do not make its matrix", "[{}, {}] x [{}, {}] for [{}, {}]", update.b.rows, update.b.cols,
      update.a.rows, update.a.cols, target.rows, target.cols);
  scope.require(std::isfinite(update.scale) && std::isfinite(static_cast<float>(update.scale)),
                "an update's scale is not finite in fp32", "{}", update.scale);
  if (update.magnitude) {
    check_factor(scope, *update.magnitude, "a DoRA magnitude");
    scope.require(update.magnitude->rows == target.rows && update.magnitude->cols == 1,
                  "a DoRA magnitude is not one value per row", "[{}, {}]", update.magnitude->rows,
                  update.magnitude->cols);
  }
  const auto lattice = lattice_of(scope.tensor(), target);
  scope.require(lattice.has_value(), "an update leaves its planned tensor, or does not follow its rows and columns",
                "[{}, {}] at {} with strides {} and {}", target.rows, target.cols, target.offset, target.row_stride,
                target.col_stride);
  return *lattice;
}

// Targets are the same or apart. Sorted by their first rows, only neighbours can meet.
void check_apart(const TensorScope& scope, std::vector<Lattice>& lattices) {
  const auto key = [](const Lattice& l) {
    return std::tuple(l.rows.first, l.cols.first, l.rows.step, l.rows.count, l.cols.step, l.cols.count, l.swapped);
  };
  std::sort(lattices.begin(), lattices.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  lattices.erase(std::unique(lattices.begin(), lattices.end()), lattices.end());
  std::vector<const Lattice*> open;  // those that may still meet the next ones
  for (const Lattice& lattice : lattices) {
    std::erase_if(open, [&](const Lattice* other) { return other->rows.last() < lattice.rows.first; });
    for (const Lattice* other : open) {
      scope.require(!(meet(other->rows, lattice.rows) && meet(other->cols, lattice.cols)),
                    "two updates share some of their elements, not all", "at row {}, column {} and row {}, column {}",
                    other->rows.first, other->cols.first, lattice.rows.first, lattice.cols.first);
    }
    open.push_back(&lattice);
  }
}

}  // namespace

void check_scales(const TensorScope& scope, const Block& block) {
  const Scales& scales = *block.scales;
  const bool packed = scales.kind == Scales::Kind::mxfp4;
  const TensorInfo& codes = scope.source_of(block.source, "a block's source");
  const TensorInfo& grid = scope.source_of(scales.grid, "a block's grid of scales");
  scope.require(packed ? codes.dtype == Dtype::u8 : is_float(codes.dtype) && info(codes.dtype).bits == 8,
                "a quantised block's codes have another dtype", "{}", codes.dtype_name);
  scope.require(grid.dtype == Dtype::f8_e8m0 || (packed ? grid.dtype == Dtype::u8 : is_float(grid.dtype)),
                "a quantised block's scales have another dtype", "{}", grid.dtype_name);
  scope.check_view(scales.grid, "a block's grid of scales");
  const std::int64_t count = elements_of(codes, packed ? 4 : 8);
  scope.require(scales.width > 0 && count % scales.width == 0 && scales.cell_rows > 0 && scales.cell_cols > 0,
                "a quantised block's codes are no matrix", "{} codes, {} columns", count, scales.width);
  const std::int64_t rows = count / scales.width;
  scope.require(
      scales.grid.rows > (rows - 1) / scales.cell_rows && scales.grid.cols > (scales.width - 1) / scales.cell_cols,
      "a quantised block has codes without a scale", "[{}, {}] codes, [{}, {}] scales for {} x {} each", rows,
      scales.width, scales.grid.rows, scales.grid.cols, scales.cell_rows, scales.cell_cols);
  scope.check_bounds(block.source, count, "a block's source");
  scope.require(block.scale == 1, "a quantised block has a scale of its own", "{}", block.scale);
}

void check_merge(const TensorScope& scope, const Merge& merge) {
  const Dtype base = merge.base_dtype;
  scope.require(base == Dtype::bf16 || base == Dtype::f16 || base == Dtype::f32 || base == Dtype::f64,
                "a merge cannot compute in this dtype", "{}", info(base).name);
  scope.require(is_float(scope.tensor().dtype), "a merge cannot be written in this dtype", "{}",
                info(scope.tensor().dtype).name);
  std::vector<Lattice> lattices;
  lattices.reserve(merge.updates.size());
  for (const Update& update : merge.updates) lattices.push_back(check_update(scope, update));
  check_apart(scope, lattices);
}

}  // namespace peft::plan
