#include "layout/gate_up.h"

#include "layout/same_values.h"

namespace peft::layout {
namespace {

// Two row ranges that are neighbours in their tensor, as one view.
std::optional<View> join_rows(const View& first, const View& second, bool interleaved) {
  View joined = first;
  joined.rows = first.rows + second.rows;
  if (interleaved) joined.row_stride = first.row_stride / 2;
  const std::int64_t next = interleaved ? joined.row_stride : first.rows * first.row_stride;
  View expected = first;
  expected.offset += next;
  if (first.row_stride % (interleaved ? 2 : 1) != 0 || expected != second) return std::nullopt;
  return joined;
}

}  // namespace

// Gate and up of every expert have the same A: then one A serves both and the rank need not double.
bool shares_a(const TensorFile* file, const Stack& stack) {
  if (stack.parts.size() != 2) return false;
  for (std::size_t e = 0; e < stack.parts[0].size(); ++e) {
    const Factor *gate = stack.parts[0][e], *up = stack.parts[1][e];
    if (gate == nullptr && up == nullptr) continue;
    if (gate == nullptr || up == nullptr) return false;
    if (gate->a != up->a && (file == nullptr || !same_values(*file, gate->a, up->a))) return false;
  }
  return true;
}

std::optional<View> joined_b(const Factor& gate, const Factor& up, bool interleaved) {
  return gate.scale == up.scale ? join_rows(gate.b, up.b, interleaved) : std::nullopt;
}

bool all_join(const Stack& stack, bool interleaved) {
  for (std::size_t e = 0; e < stack.parts[0].size(); ++e) {
    const Factor *gate = stack.parts[0][e], *up = stack.parts[1][e];
    if (gate != nullptr && !joined_b(*gate, *up, interleaved)) return false;
  }
  return true;
}

}  // namespace peft::layout
