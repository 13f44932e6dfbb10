#include "execute/merge/inputs/target_matrix.h"

#include <map>
#include <tuple>

namespace peft::execution {

TargetIndex::TargetIndex(const PlannedTensor& tensor) {
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>, std::size_t> known;
  const std::vector<Update>& updates = tensor.merge->updates;
  for (std::size_t u = 0; u < updates.size(); ++u) {
    const View& target = updates[u].target;
    const auto key = std::tuple(target.offset, target.rows, target.cols, target.row_stride, target.col_stride);
    const auto [it, is_new] = known.try_emplace(key, matrices.size());
    if (is_new) matrices.push_back({*plan::lattice_of(tensor, target), {}});
    matrices[it->second].updates.push_back(static_cast<std::uint32_t>(u));
  }
  by_row = RowIndex(
      matrices.size(), [&](std::size_t i) { return matrices[i].lattice.rows.first; },
      [&](std::size_t i) { return matrices[i].lattice.rows.last() + 1; });
}

}  // namespace peft::execution
