// One tensor that a merge changes: where its updates and blocks are, and its rows before the merge. One thread's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "execute/kernels/line_buffer.h"
#include "execute/merge/inputs/target_matrix.h"
#include "execute/kernels/pack_factors.h"
#include "execute/copy/render.h"

namespace peft::execution {

// Rows of base_dtype in memory.
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
  const TargetIndex& index() const { return index_; }

  // How many rows from `row` on base() can give at once without moving them, or up to where it has to.
  std::int64_t stretch(std::int64_t row) const;
  // Where the source has them, if it has them as they are; else made in `scratch`, which holds area.rows * area.cols
  // elements.
  BaseRows base(const Rectangle& area, std::byte* scratch, Scratch& more) const;

 private:
  const Block* direct_block(std::int64_t row) const;  // null: rows have to be made

  const Plan* plan_;
  const PlannedTensor* tensor_;
  TargetIndex index_;
  TensorOps ops_;                             // for whole rows
  mutable std::optional<TensorOps> any_ops_;  // for any rectangle; made when it is needed
  RowIndex blocks_;
};

// Weights of a place before the merge: rows [row, row + rows) of its matrix as stored, one panel of columns; zeros past
// the last column.
template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch);

}  // namespace peft::execution
