#include "execute/copy/copy_ops.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "execute/values/element.h"

namespace peft::execution {
namespace {

// With more blocks than this, the whole tensor is zeroed first instead of looking for gaps.
constexpr std::size_t kMaxBlocksForGaps = 4096;

Op op_of(const Plan& plan, const PlannedTensor& tensor, const Block& block) {
  const View& view = block.source;
  const Dtype dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  Op op;
  op.dtype = dtype;
  op.scale = block.scale;
  op.convert = dtype != rendered_dtype(tensor) || block.scale != 1 || block.scales;
  op.row = block.row;
  op.rows = view.rows;
  op.col = block.col;
  op.cols = view.cols;
  op.col_step = view.cols == 1 ? 1 : block.col_step;
  if (block.scales) {
    op.kind = Op::Kind::decode;
    op.codes = codes_of(plan, block);
    return op;
  }
  op.data = first_byte(plan, view);
  // The stride of a single row or column is never used. It gets the value of a contiguous block.
  const std::int64_t size = element_size(dtype);
  op.col_stride = view.cols == 1 ? size : view.col_stride * size;
  op.row_stride = view.rows == 1 ? view.cols * size : view.row_stride * size;
  return op;
}

// Whether the columns of the source are contiguous: each one is then a member of an interleave.
bool is_contiguous_downwards(const Op& op) { return op.row_stride == element_size(op.dtype) && op.rows > 1; }

// The operation for a block of one view.
Op single_op(const Plan& plan, const PlannedTensor& tensor, const Block& block, bool wide) {
  Op op = op_of(plan, tensor, block);
  if (op.kind == Op::Kind::decode) return op;
  const std::int64_t size = element_size(op.dtype);
  const bool contiguous = op.col_stride == size && op.col_step == 1;
  const bool whole = contiguous && op.row_stride == op.cols * size && op.cols == tensor.cols;
  if (!wide && !whole && op.col_step == 1 && is_contiguous_downwards(op)) {
    op.kind = Op::Kind::interleave;
    op.width = op.cols;
    op.members = {{op.data, op.cols, op.col_stride}};
  } else {
    op.kind = contiguous ? Op::Kind::copy : Op::Kind::strided;
  }
  return op;
}

// All members of a block as one interleave, where they fill its columns; nullopt where each is an operation of its own.
std::optional<Op> joined_op(const Plan& plan, const PlannedTensor& tensor, const Block& block) {
  Op op = op_of(plan, tensor, block);
  const std::int64_t members = block.num_members(), cols = op.cols;
  const bool side_by_side = op.col_step == 1 && block.col_shift == cols;
  const bool in_turn = block.col_shift == 1 && (cols == 1 || op.col_step == members);
  const bool downwards = is_contiguous_downwards(op), across = op.col_stride == element_size(op.dtype);
  if (block.row_shift != 0 || !(downwards ? side_by_side || in_turn : across && in_turn)) return std::nullopt;
  // Zeros would become -0.
  const auto is_zeros = [](const Origin& origin) { return origin.is_zeros(); };
  if (std::signbit(op.scale) && std::ranges::any_of(block.members, is_zeros)) return std::nullopt;
  op.kind = Op::Kind::interleave;
  op.group = downwards ? 1 : cols;
  op.cols = members * cols;
  op.width = op.cols / op.group;
  op.col_step = 1;
  const auto add = [&](const Origin& origin, std::int64_t first_col, std::int64_t count) {
    if (origin.is_zeros()) return op.members.push_back({nullptr, count, 0});
    const View view{origin.source, origin.tensor, origin.offset};
    op.members.push_back({first_byte(plan, view) + first_col * op.col_stride, count, op.col_stride});
  };
  const bool one_by_one = downwards && !side_by_side;  // column k of all members, then column k + 1
  for (std::int64_t k = 0; k < (one_by_one ? cols : 1); ++k) {
    for (const Origin& origin : block.members) add(origin, k, downwards && side_by_side ? cols : 1);
  }
  return op;
}

void add_ops(const Plan& plan, const PlannedTensor& tensor, const Block& block, bool wide, std::vector<Op>& ops) {
  if (!wide && !block.members.empty()) {
    if (auto op = joined_op(plan, tensor, block)) return ops.push_back(std::move(*op));
  }
  block.for_each_member([&](const Block& member) { ops.push_back(single_op(plan, tensor, member, wide)); });
}

bool overlap(std::int64_t a, std::int64_t a_size, std::int64_t b, std::int64_t b_size) {
  return a < b + b_size && b < a + a_size;
}

// The rectangles that no dense operation covers: for each band of rows between two edges, the columns between
// operations.
std::vector<Rectangle> gaps(const PlannedTensor& tensor, const std::vector<Op>& ops) {
  std::int64_t covered = 0;
  std::vector<std::int64_t> edges = {0, tensor.rows};
  std::vector<const Op*> dense;
  for (const Op& op : ops) {
    if (!op.dense()) continue;
    covered += op.rows * op.cols;
    edges.push_back(op.row);
    edges.push_back(op.row + op.rows);
    dense.push_back(&op);
  }
  if (covered == tensor.rows * tensor.cols) return {};
  if (dense.size() > kMaxBlocksForGaps) return {{0, tensor.rows, 0, tensor.cols}};
  std::sort(dense.begin(), dense.end(), [](const Op* a, const Op* b) { return a->col < b->col; });
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  std::vector<Rectangle> zeros;
  for (std::size_t band = 0; band + 1 < edges.size(); ++band) {
    const std::int64_t row = edges[band], rows = edges[band + 1] - row;
    std::int64_t col = 0;
    for (const Op* op : dense) {
      if (!overlap(row, rows, op->row, op->rows)) continue;
      if (op->col > col) zeros.push_back({row, rows, col, op->col - col});
      col = std::max(col, op->col + op->cols);
    }
    if (col < tensor.cols) zeros.push_back({row, rows, col, tensor.cols - col});
  }
  return zeros;
}

}  // namespace

Dtype rendered_dtype(const PlannedTensor& tensor) { return tensor.merge ? tensor.merge->base_dtype : tensor.dtype; }

TensorOps make_ops(const Plan& plan, const PlannedTensor& tensor, bool wide) {
  TensorOps result;
  for (const Block& block : tensor.blocks) add_ops(plan, tensor, block, wide, result.ops);
  result.zeros = gaps(tensor, result.ops);
  return result;
}

}  // namespace peft::execution
