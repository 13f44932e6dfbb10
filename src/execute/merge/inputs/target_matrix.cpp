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

StepRange steps_in(const plan::Steps& steps, std::int64_t begin, std::int64_t end) {
  const auto up = [&](std::int64_t x) {
    return x <= steps.first ? 0 : (x - steps.first + steps.step - 1) / steps.step;
  };
  const std::int64_t first = std::min(up(begin), steps.count);
  return {first, std::max<std::int64_t>(0, std::min(up(end), steps.count) - first)};
}

}  // namespace peft::execution
