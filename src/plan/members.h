// Makes blocks of several members: the experts of a layer, in stacked rows or in interleaved columns.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "peft/plan.h"

namespace peft::plan {

// Where members go: element (i, j) of member m to row + i + m * row_shift, col + j * col_step + m * col_shift.
struct MemberGrid {
  std::int64_t row = 0, col = 0, col_step = 1, row_shift = 0, col_shift = 0;
};

struct MemberView {
  View view{};  // without rows: there is no such member, its elements are zeros
  double scale = 1;
  Dtype dtype = Dtype::f32;  // of the view's tensor
};

// Appends the blocks of `members`: one for each run of members that have the same shape, strides, scale and dtype.
// Usually that is one block for all. Members without a view belong to the run before them; the first ones to the first
// run. Nothing is appended where no member has a view.
void append_members(std::vector<Block>& blocks, const MemberGrid& grid, std::span<const MemberView> members);

// How many views the blocks of a tensor have.
std::size_t count_views(const PlannedTensor& tensor);

}  // namespace peft::plan
