#include "execute/copy/column_group.h"

#include <algorithm>
#include <map>

#include "execute/kernels/transpose.h"
#include "execute/values/element.h"

namespace peft::execution {
namespace {

// Rendering fewer tensors than this together gains nothing.
constexpr std::size_t kMinMembers = 8;
// Elements of each member per round: the source rows of a round stay in the second-level cache while
// several groups of members are taken from them.
constexpr std::int64_t kRound = 1024;

ColumnGroup group_of_tensor(const Plan& plan, const PlannedTensor& tensor) {
  const Block& block = tensor.blocks.front();
  View view = block.source;
  ColumnGroup group;
  group.from = plan.sources[view.source]->tensors()[view.tensor].dtype;
  group.to = tensor.dtype;
  group.scale = block.scale;
  group.rows = view.rows;
  group.cols = view.cols;
  group.row_stride = view.row_stride * element_size(group.from);
  group.col_stride = view.col_stride * element_size(group.from);
  view.offset = 0;
  group.data = first_byte(plan, view);
  return group;
}

}  // namespace

ColumnGroups column_groups_of(const Plan& plan, const PlannedFile& file) {
  ColumnGroups result;
  result.group_of_tensor.assign(file.tensors.size(), ColumnGroups::kNone);
  result.first.assign(file.tensors.size(), 0);
  std::map<std::int32_t, std::vector<std::size_t>> groups;
  for (std::size_t t = 0; t < file.tensors.size(); ++t) {
    if (file.tensors[t].column_group != PlannedTensor::kNoGroup) groups[file.tensors[t].column_group].push_back(t);
  }
  for (auto& [number, members] : groups) {
    if (members.size() < kMinMembers) continue;
    const auto offset = [&](std::size_t t) { return file.tensors[t].blocks.front().source.offset; };
    std::sort(members.begin(), members.end(),
              [&](std::size_t a, std::size_t b) { return offset(a) != offset(b) ? offset(a) < offset(b) : a < b; });
    for (std::size_t t : members) {
      result.group_of_tensor[t] = result.groups.size();
      result.first[t] = offset(t);
    }
    result.groups.push_back(group_of_tensor(plan, file.tensors[members.front()]));
    result.groups.back().members = std::move(members);
  }
  return result;
}

void render_members(const ColumnGroup& group, std::int64_t begin, std::int64_t end, std::span<Destination> destinations,
                    Scratch& scratch) {
  std::sort(destinations.begin(), destinations.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  const std::int64_t size = element_size(group.from);
  for (std::int64_t m = begin; m < end; m += kRound) {
    const std::int64_t stop = std::min(m + kRound, end);
    for (std::size_t d = 0; d < destinations.size();) {
      const std::byte* base = group.data + destinations[d].first * size;
      scratch.out_rows.clear();
      // Members that are neighbours in the source.
      const std::int64_t first = destinations[d].first;
      while (d < destinations.size() &&
             destinations[d].first == first + static_cast<std::int64_t>(scratch.out_rows.size())) {
        scratch.out_rows.push_back(destinations[d++].out + (m - begin) * size);
      }
      scratch.in_rows.resize(static_cast<std::size_t>(stop - m));
      auto to = scratch.in_rows.begin();
      std::int64_t i = m / group.cols, j = m % group.cols;
      for (std::int64_t k = m; k < stop; ++i, j = 0) {
        const std::byte* row = base + i * group.row_stride + j * group.col_stride;
        for (std::int64_t row_end = std::min(k + group.cols - j, stop); k < row_end; ++k, row += group.col_stride) {
          *to++ = row;
        }
      }
      transpose(scratch.in_rows, scratch.out_rows, static_cast<std::size_t>(size));
    }
  }
}

}  // namespace peft::execution
