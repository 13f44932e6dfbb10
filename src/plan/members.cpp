#include "plan/members.h"

#include <algorithm>

namespace peft::plan {
namespace {

bool is_missing(const MemberView& member) { return member.view.rows == 0; }

bool are_alike(const MemberView& a, const MemberView& b) {
  View moved = b.view;
  moved.source = a.view.source, moved.tensor = a.view.tensor, moved.offset = a.view.offset;
  return moved == a.view && a.scale == b.scale && a.dtype == b.dtype;
}

}  // namespace

void append_members(std::vector<Block>& blocks, const MemberGrid& grid, std::span<const MemberView> members) {
  const auto first_of = [&](std::size_t begin) {
    return static_cast<std::size_t>(
        std::find_if_not(members.begin() + static_cast<std::ptrdiff_t>(begin), members.end(), is_missing) -
        members.begin());
  };
  for (std::size_t begin = 0, end = 0; begin < members.size(); begin = end) {
    const std::size_t first = first_of(begin);
    if (first == members.size()) return;
    for (end = first + 1; end < members.size(); ++end) {
      if (!is_missing(members[end]) && !are_alike(members[end], members[first])) break;
    }
    const auto place = static_cast<std::int64_t>(begin);
    Block block{grid.row + place * grid.row_shift, grid.col + place * grid.col_shift, grid.col_step,
                members[first].view, members[first].scale};
    if (end - begin > 1) {
      block.row_shift = grid.row_shift, block.col_shift = grid.col_shift;
      block.members.reserve(end - begin);
      for (const MemberView& member : members.subspan(begin, end - begin)) {
        block.members.push_back(
            {member.view.source, member.view.tensor, is_missing(member) ? Origin::kZeros : member.view.offset});
      }
    }
    blocks.push_back(std::move(block));
  }
}

std::size_t count_views(const PlannedTensor& tensor) {
  std::size_t count = 0;
  for (const Block& block : tensor.blocks) block.for_each_member([&](const Block&) { ++count; });
  return count;
}

}  // namespace peft::plan
