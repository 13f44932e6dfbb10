#include "execute/copy/copy_ops.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>
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

// Blocks that may become columns of one interleave have equal keys.
using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, Dtype, double>;

// A candidate: its columns start at `col`; for group > 1 they are col, col + step, ...
struct Candidate {
  std::int64_t col = 0;
  Member member;
  Op op;  // the operation if no group forms
};

bool overlap(std::int64_t a, std::int64_t a_size, std::int64_t b, std::int64_t b_size) {
  return a < b + b_size && b < a + a_size;
}

class Grouping {
 public:
  Grouping(const PlannedTensor& tensor, bool wide) : tensor_(tensor), wide_(wide) {}

  void add(Op op) {
    if (op.kind == Op::Kind::decode) return result_.push_back(std::move(op));
    const std::int64_t size = element_size(op.dtype);
    const bool contiguous = op.col_stride == size && op.col_step == 1;
    const bool whole = contiguous && op.row_stride == op.cols * size && op.cols == tensor_.cols;
    if (!wide_ && !whole && op.row_stride == size && op.rows > 1) {  // contiguous downwards: each column is a member
      add_columns(op);
    } else if (contiguous) {
      op.kind = Op::Kind::copy;
      result_.push_back(std::move(op));
    } else if (!wide_ && op.col_stride == size && op.col_step > 1) {
      const Key key{op.row, op.rows, op.cols, op.col_step, op.row_stride, op.dtype, op.scale};
      fused_[key].push_back({op.col, {op.data, 1, 0}, op});
    } else {
      op.kind = Op::Kind::strided;
      result_.push_back(std::move(op));
    }
  }

  std::vector<Op> finish() {
    for (auto& [key, candidates] : columns_) join_columns(key, candidates);
    for (auto& [key, candidates] : fused_) join_fused(key, candidates);
    return std::move(result_);
  }

 private:
  void add_columns(const Op& op) {
    const Key key{op.row, op.rows, 1, 1, op.row_stride, op.dtype, op.scale};
    auto& columns = columns_[key];
    if (op.col_step == 1) {
      columns.push_back({op.col, {op.data, op.cols, op.col_stride}, op});
      return;
    }
    for (std::int64_t j = 0; j < op.cols; ++j) {
      columns.push_back({op.col + j * op.col_step, {op.data + j * op.col_stride, 1, 0}, op});
    }
  }

  // Columns that lie side by side become one interleave.
  void join_columns(const Key& key, std::vector<Candidate>& candidates) {
    std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.col < b.col; });
    for (std::size_t i = 0; i < candidates.size();) {
      Op op = interleave(key, candidates[i].col);
      for (; i < candidates.size() && candidates[i].col == op.col + op.width; ++i) {
        op.width += candidates[i].member.count;
        op.members.push_back(candidates[i].member);
      }
      op.cols = op.width;
      result_.push_back(std::move(op));
    }
  }

  // Blocks whose columns are k * step + e for all k < group: experts of a fused lora_B.
  void join_fused(const Key& key, std::vector<Candidate>& candidates) {
    std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.col < b.col; });
    const std::int64_t group = std::get<2>(key), step = std::get<3>(key), cols = group * step;
    for (std::size_t i = 0; i < candidates.size();) {
      const std::int64_t first = candidates[i].col;
      // Missing experts: the first one present need not be number 0.
      const std::int64_t start = std::max<std::int64_t>(0, std::min(first / cols * cols, tensor_.cols - cols));
      Op op = interleave(key, start);
      op.width = step;
      op.cols = cols;
      op.members.assign(static_cast<std::size_t>(step), Member{});
      std::size_t end = i;
      for (; end < candidates.size() && candidates[end].col < start + step; ++end) {
        op.members[static_cast<std::size_t>(candidates[end].col - start)] = candidates[end].member;
      }
      const bool complete = end - i == static_cast<std::size_t>(step);
      const bool fits =
          end > i && start + cols <= tensor_.cols && (complete || (!std::signbit(op.scale) && alone(op, end - i)));
      if (fits) {
        result_.push_back(std::move(op));
      } else {
        end = std::max(end, i + 1);
        for (std::size_t k = i; k < end; ++k) {
          candidates[k].op.kind = Op::Kind::strided;
          result_.push_back(std::move(candidates[k].op));
        }
      }
      i = end;
    }
  }

  // An interleave with missing members writes zeros, so nothing else may write into its rectangle. Nor may its scale
  // be negative, which would turn the zeros into -0.
  bool alone(const Op& op, std::size_t members) const {
    std::size_t inside = 0;
    for (const Block& block : tensor_.blocks) {
      const std::int64_t span = (block.source.cols - 1) * block.col_step + 1;
      if (overlap(op.row, op.rows, block.row, block.source.rows) && overlap(op.col, op.cols, block.col, span)) ++inside;
    }
    return inside == members;
  }

  static Op interleave(const Key& key, std::int64_t col) {
    Op op;
    op.kind = Op::Kind::interleave;
    std::tie(op.row, op.rows, op.group, std::ignore, op.row_stride, op.dtype, op.scale) = key;
    op.col = col;
    return op;
  }

  const PlannedTensor& tensor_;
  bool wide_;
  std::vector<Op> result_;
  std::map<Key, std::vector<Candidate>> columns_, fused_;
};

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
  Grouping grouping(tensor, wide);
  for (const Block& block : tensor.blocks) grouping.add(op_of(plan, tensor, block));
  TensorOps result;
  result.ops = grouping.finish();
  for (Op& op : result.ops) {
    if (op.kind == Op::Kind::interleave) op.convert = op.dtype != rendered_dtype(tensor) || op.scale != 1;
  }
  result.zeros = gaps(tensor, result.ops);
  return result;
}

}  // namespace peft::execution
