#include "plan/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "base/float_formats.h"
#include "gguf/types/block_formats.h"
#include "peft/error.h"
#include "plan/update_targets.h"
#include "plan/view_check.h"

namespace peft::plan {
namespace {

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();  // "does not fit 64 bits"

std::int64_t add(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  return a == kNone || b == kNone || __builtin_add_overflow(a, b, &sum) ? kNone : sum;
}

std::int64_t multiply(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return a == kNone || b == kNone || __builtin_mul_overflow(a, b, &product) ? kNone : product;
}

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

// Blocks of a GGUF file: elements are counted as if they were not packed.
void check_ggml_blocks(const TensorScope& scope, const Block& block) {
  const TensorInfo& source = scope.tensor_of(block.source, "a block's source");
  const auto type = gguf::parse_ggml_type(source.dtype_name);
  scope.require(source.dtype == Dtype::unknown && type && gguf::find_block_format(*type) != nullptr,
                "a quantised block is of a type that is not read", "{}", source.dtype_name);
  const auto blocks = static_cast<std::int64_t>(source.bytes() / gguf::info(*type).block_bytes);
  scope.check_bounds(block.source, multiply(blocks, gguf::info(*type).block), "a block's source");
  scope.require(block.scale == 1, "a quantised block has a scale of its own", "{}", block.scale);
}

void check_scales(const TensorScope& scope, const Block& block) {
  const Scales& scales = *block.scales;
  if (scales.kind == Scales::Kind::ggml) return check_ggml_blocks(scope, block);
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

// Checks one tensor of one file, and says which when it fails.
class TensorCheck {
 public:
  TensorCheck(const Plan& plan, const PlannedFile& file, const PlannedTensor& tensor)
      : scope_(plan, file, tensor), file_(file), tensor_(tensor) {}

  void run() const {
    check_shape();
    if (tensor_.packing) check_packing();
    if (tensor_.packing && tensor_.dtype == Dtype::unknown) return check_moved();
    scope_.require(info(tensor_.dtype).bits > 0, "a planned tensor has no known dtype");
    std::int64_t covered = 0;
    for (const Block& block : tensor_.blocks) {
      check_block(block);
      check_source(block);
      if (!block.members.empty()) check_members(block);
      covered = add(covered, multiply(block.num_members(), block.source.rows * block.source.cols));
    }
    scope_.require(covered <= tensor_.rows * tensor_.cols, "blocks of a planned tensor overlap");
    if (tensor_.merge) check_merge(scope_, *tensor_.merge);
  }

 private:
  void check_shape() const {
    std::int64_t elements = 1;
    for (std::int64_t size : tensor_.shape) {
      scope_.require(size >= 0, "a planned tensor has a negative dimension", "{}", size);
      elements = multiply(elements, size);
    }
    scope_.require(elements != kNone && multiply(elements, info(tensor_.dtype).bits) != kNone,
                   "a planned tensor is too large");
    scope_.require(tensor_.rows >= 0 && has_columns(tensor_.cols) && multiply(tensor_.rows, tensor_.cols) == elements,
                   "rows and columns of a planned tensor are not its shape", "[{}, {}]", tensor_.rows, tensor_.cols);
  }

  void check_packing() const {
    const bool moved = tensor_.dtype == Dtype::unknown;
    scope_.require(
        file_.gguf != nullptr && (moved || (tensor_.dtype == Dtype::f32 && gguf::can_pack(*tensor_.packing))),
        "only F32 tensors of GGUF files are packed, and not in every type", "{}", info(tensor_.dtype).name);
    scope_.require(
        gguf::fills_blocks(*tensor_.packing, tensor_.shape) && tensor_.cols % gguf::info(*tensor_.packing).block == 0,
        "rows of a packed tensor do not fill blocks", "{} columns", tensor_.cols);
  }

  // Bytes that are moved: the whole of a tensor of the same type.
  void check_moved() const {
    scope_.require(!tensor_.merge && tensor_.blocks.size() == (tensor_.bytes() == 0 ? 0 : 1),
                   "a tensor whose bytes are moved is not one block");
    for (const Block& block : tensor_.blocks) {
      const View& view = block.source;
      const TensorInfo& source = scope_.tensor_of(view, "a block's source");
      scope_.require(source.dtype_name == gguf::info(*tensor_.packing).name && source.bytes() == tensor_.bytes(),
                     "a tensor whose bytes are moved is of another type than its source", "{}", source.dtype_name);
      scope_.require(block.row == 0 && block.members.empty() && !block.scales && block.scale == 1 && view.offset == 0 &&
                         view.rows == tensor_.rows && view.cols == tensor_.cols,
                     "a tensor whose bytes are moved is not the whole of its source");
    }
  }

  // The last dimension, whole multiples of it, or the last ones together.
  bool has_columns(std::int64_t cols) const {
    if (!tensor_.shape.empty() && tensor_.shape.back() > 0 && cols % tensor_.shape.back() == 0) return true;
    std::int64_t product = 1;
    for (auto size = tensor_.shape.rbegin(); size != tensor_.shape.rend(); ++size) {
      product = multiply(product, *size);
      if (product == kNone) return false;
      if (product == cols) return true;
    }
    return tensor_.shape.empty() && cols == 1;
  }

  void check_block(const Block& block) const {
    const View& view = block.source;
    scope_.require(view.rows > 0 && view.cols > 0, "a block is empty", "[{}, {}]", view.rows, view.cols);
    const std::int64_t last = block.num_members() - 1;
    const std::int64_t row_end = add(add(block.row, view.rows), multiply(last, block.row_shift));
    const std::int64_t last_col =
        add(add(block.col, multiply(view.cols - 1, block.col_step)), multiply(last, block.col_shift));
    scope_.require(block.row >= 0 && row_end != kNone && row_end <= tensor_.rows && block.col >= 0 &&
                       block.col_step >= 1 && block.row_shift >= 0 && block.col_shift >= 0 && last_col != kNone &&
                       last_col < tensor_.cols,
                   "a block leaves its planned tensor", "[{}, {}] at row {}, column {} step {}", view.rows, view.cols,
                   block.row, block.col, block.col_step);
    scope_.require(std::isfinite(block.scale), "a block's scale is not finite", "{}", block.scale);
  }

  // Members lie apart, in rows, side by side or interleaved. Their sources have one dtype.
  void check_members(const Block& block) const {
    const View& view = block.source;
    const std::int64_t width = add(multiply(view.cols - 1, block.col_step), 1);
    const bool interleaved = block.col_shift >= 1 && multiply(block.num_members(), block.col_shift) <= block.col_step;
    scope_.require(block.row_shift >= view.rows || block.col_shift >= width || interleaved,
                   "members of a block overlap", "{} of [{}, {}], {} rows and {} columns apart", block.num_members(),
                   view.rows, view.cols, block.row_shift, block.col_shift);
    scope_.require(!block.scales && !tensor_.merge, "a quantised or merged block has members");
    const Dtype dtype = scope_.source_of(view, "a block's source").dtype;
    bool has_source = false;
    block.for_each_member([&](const Block& member) {
      const TensorInfo& source = scope_.source_of(member.source, "a block's member");
      scope_.require(source.dtype == dtype, "members of a block have different dtypes", "{}", source.dtype_name);
      scope_.check_view(member.source, "a block's member");
      if (!std::exchange(has_source, true))
        scope_.require(member.source == view, "a block's source is not its first member");
    });
    scope_.require(has_source, "all members of a block are zeros");
  }

  void check_source(const Block& block) const {
    const View& view = block.source;
    const TensorInfo& source = scope_.tensor_of(view, "a block's source");
    if (block.scales) {
      scope_.require(is_float(tensor_.dtype), "a quantised block cannot be converted", "{}", info(tensor_.dtype).name);
      return check_scales(scope_, block);
    }
    const int bits = info(source.dtype).bits;
    scope_.require(bits > 0, "a block's source has no known dtype", "{}", source.dtype_name);
    const bool moved = source.dtype == tensor_.dtype && block.scale == 1 && !tensor_.merge;
    scope_.require(moved || (is_float(source.dtype) && is_float(tensor_.dtype)), "a block cannot be converted",
                   "{} to {}", info(source.dtype).name, info(tensor_.dtype).name);
    scope_.check_bounds(view, elements_of(source, bits), "a block's source");
    if (bits % 8 != 0) check_whole(block, view);
  }

  // Elements of less than a byte cannot be addressed; such tensors are only copied whole.
  void check_whole(const Block& block, const View& view) const {
    scope_.require(view.offset == 0 && block.col_step == 1 && view.col_stride == 1 && view.row_stride == view.cols &&
                       view.rows == tensor_.rows && view.cols == tensor_.cols,
                   "a tensor of a sub-byte dtype can only be copied whole", "{}", info(tensor_.dtype).name);
  }

  const TensorScope scope_;
  const PlannedFile& file_;
  const PlannedTensor& tensor_;
};

// Whether two views are the same but for their offset.
bool are_alike(const View& a, View b) {
  b.offset = a.offset;
  return a == b;
}

void check_column_groups(const Plan& plan, const PlannedFile& file) {
  std::map<std::int32_t, const PlannedTensor*> first_of;
  for (const PlannedTensor& tensor : file.tensors) {
    if (tensor.column_group == PlannedTensor::kNoGroup) continue;
    const TensorScope scope(plan, file, tensor);
    scope.require(tensor.blocks.size() == 1 && tensor.blocks[0].members.empty() && !tensor.blocks[0].scales &&
                      !tensor.merge && !tensor.packing && info(tensor.dtype).bits % 8 == 0,
                  "a tensor of a column group is not one block of one view");
    const Block& block = tensor.blocks[0];
    scope.require(block.source.rows == tensor.rows && block.source.cols == tensor.cols,
                  "a tensor of a column group is not one view whole");
    const PlannedTensor& first = *first_of.try_emplace(tensor.column_group, &tensor).first->second;
    scope.require(are_alike(first.blocks[0].source, block.source) && first.blocks[0].scale == block.scale &&
                      first.dtype == tensor.dtype,
                  "tensors of a column group are not alike", "{} and {}", first.name, tensor.name);
  }
}

void check_names(const PlannedFile& file) {
  std::vector<std::string_view> names;
  names.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) names.push_back(tensor.name);
  if (!std::is_sorted(names.begin(), names.end())) std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return;
  throw Error(ErrorCode::INTERNAL,
              {.file = file.name, .tensor = std::string(*twice), .problem = "two planned tensors have the same name"});
}

}  // namespace

void check(const Plan& plan) {
  if (plan.single_file && (plan.files.size() != 1 || !plan.texts.empty() || !plan.copies.empty()))
    throw Error(ErrorCode::INTERNAL, {.problem = "an output of one file has other files beside it"});
  for (const PlannedFile& file : plan.files) {
    check_names(file);
    for (const PlannedTensor& tensor : file.tensors) {
      TensorCheck(plan, file, tensor).run();
      if (!file.gguf || tensor.packing || gguf::ggml_type_of(tensor.dtype)) continue;
      throw Error(ErrorCode::INTERNAL, {.file = file.name,
                                        .tensor = tensor.name,
                                        .problem = "GGUF has no such element type",
                                        .got = std::string(info(tensor.dtype).name)});
    }
    check_column_groups(plan, file);
  }
}

}  // namespace peft::plan
