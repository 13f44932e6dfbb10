// Output tensors that are columns of one source tensor: the experts' lora_B, taken out of a fused lora_B.
// One member alone would read the whole source for a few bytes of every cache line. Together the members read it once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "execute/copy/render.h"
#include "peft/plan.h"

namespace peft::execution {

// Element (i, j) of the member whose first column is `first` lies at data + first * element size + i * row_stride +
// j * col_stride. Strides are in bytes.
struct ColumnGroup {
  const std::byte* data = nullptr;
  std::int64_t rows = 0, cols = 0, row_stride = 0, col_stride = 0;
  Dtype from = Dtype::f32, to = Dtype::f32;
  double scale = 1;
  std::vector<std::size_t> members;  // indices of planned tensors, by `first`

  bool converts() const { return from != to || scale != 1; }
};

struct ColumnGroups {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::vector<ColumnGroup> groups;
  std::vector<std::size_t> group_of_tensor;  // for each planned tensor of the file, or kNone
  std::vector<std::int64_t> first;           // for each planned tensor that is a member
};
// The column groups that the plan names, but for those that are too small to gain from it.
ColumnGroups column_groups_of(const Plan& plan, const PlannedFile& file);

// Where the elements [begin, end) of a member go, counted row by row.
struct Destination {
  std::int64_t first = 0;
  std::byte* out = nullptr;
};
// Copies elements [begin, end) of several members without converting them. Sorts `destinations` by `first`.
void render_members(const ColumnGroup& group, std::int64_t begin, std::int64_t end, std::span<Destination> destinations,
                    Scratch& scratch);

}  // namespace peft::execution
