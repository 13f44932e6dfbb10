#include "layout/encode/placer.h"

#include <algorithm>
#include <utility>

namespace peft::layout {

// Gate and up share A. Their B become the rows of one, as one view where they lie like that in the file.
void Placer::place_shared(const ExpertsForm::Fused& parameter) {
  put_a(0, all_a(0));
  if (alternate_ || !all_join(stack_, parameter.interleaved)) {
    put_b(0, 0, all_b(0));
    put_b(0, 1, all_b(1));
    return;
  }
  Members members = all_b(0);
  for (std::size_t e = 0; e < members.size(); ++e) {
    const Factor *gate = stack_.parts[0][e], *up = stack_.parts[1][e];
    if (gate != nullptr) members[e].view = *joined_b(*gate, *up, parameter.interleaved);
  }
  put_b(0, 0, std::move(members));
}

void Placer::place(const ExpertsForm::Fused& parameter) {
  if (stack_.shared_a) return place_shared(parameter);
  // Stacked rows of gate and up take turns. In the order of their rows they can be written as they lie in the file.
  const bool filled = stack_.rank == stack_.ranks.front() * static_cast<std::int64_t>(stack_.ranks.size());
  const bool even =
      filled && std::ranges::all_of(stack_.ranks, [&](auto rank) { return rank == stack_.ranks.front(); });
  if (natural_ && even) {
    Members members;
    for (std::size_t e = 0; e < stack_.parts.front().size(); ++e)
      for (const auto& part : stack_.parts) members.push_back(a_of(part[e]));
    plan::append_members(stacked, {.row_shift = stack_.ranks.front()}, members);
  }
  std::int64_t rank_at = 0;
  for (std::size_t p = 0; p < stack_.parts.size(); ++p) {
    if (!(natural_ && even)) put_a(rank_at, all_a(p));
    put_b(rank_at, p, all_b(p));
    rank_at += stack_.ranks[p];
  }
}

}  // namespace peft::layout
