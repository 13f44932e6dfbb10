// One tensor that a merge changes: where its updates and blocks are, and its rows before the merge. One thread's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "execute/merge_index.h"
#include "execute/merge_pack.h"
#include "execute/render.h"

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
  const MergeIndex& index() const { return index_; }

  // How many rows from `row` on base() can give at once without moving them, or up to where it has to.
  std::int64_t stretch(std::int64_t row) const;
  // Where the source has them, if it has them as they are; else made in `scratch`, which holds area.rows * area.cols
  // elements.
  BaseRows base(const Rectangle& area, std::byte* scratch, Scratch& more) const;

 private:
  const Block* direct_block(std::int64_t row) const;  // null: rows have to be made

  const Plan* plan_;
  const PlannedTensor* tensor_;
  MergeIndex index_;
  TensorOps ops_;                             // for whole rows
  mutable std::optional<TensorOps> any_ops_;  // for any rectangle; made when it is needed
  RowIndex blocks_;
};

}  // namespace peft::execution
