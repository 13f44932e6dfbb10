// One tensor that a merge changes: its target matrices, its blocks, and its rows before the merge. Not for several
// threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "execute/copy/render.h"
#include "execute/kernels/pack_factors.h"
#include "execute/merge/inputs/line_buffer.h"
#include "plan/update_targets.h"

namespace peft::execution {

// Rows of dtype base_dtype in memory.
struct BaseRows {
  const std::byte* data = nullptr;  // of the first row and column asked for
  std::int64_t pitch = 0;
};

class MergedTensor {
 public:
  MergedTensor(const Plan& plan, const PlannedTensor& tensor, bool wide);

  const Plan& plan() const { return *plan_; }
  const PlannedTensor& tensor() const { return *tensor_; }
  const Merge& merge() const { return *tensor_->merge; }
  const plan::TargetIndex& index() const { return index_; }

  // The number of rows from `row` on that one call of base() can return: up to the end of the block that lies in the
  // file as it is needed, or up to the next such block.
  std::int64_t stretch(std::int64_t row) const;
  // Whether base() points into the source from this row on.
  bool is_direct(std::int64_t row) const { return direct_block(row) != nullptr; }
  // Points into the source if the rows lie there as they are needed. Else renders them into `scratch`, which holds
  // area.rows * area.cols elements.
  BaseRows base(const Rectangle& area, std::byte* scratch, Scratch& more) const;

 private:
  const Block* direct_block(std::int64_t row) const;  // null: the rows have to be rendered

  const Plan* plan_;
  const PlannedTensor* tensor_;
  plan::TargetIndex index_;
  TensorOps ops_;                             // for whole rows
  mutable std::optional<TensorOps> any_ops_;  // for any rectangle; made when it is needed
  plan::RowIndex blocks_;
};

// Weights of a target matrix before the merge: its rows [row, row + rows) as stored, one panel of columns; zeros past
// the last column.
template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch);

}  // namespace peft::execution
