// The matrices of one or more adapters, group by group: what combine, resize and extract walk.
#pragma once

#include <span>
#include <vector>

#include "peft/verbs.h"
#include "verbs/low_rank/new_adapter.h"

namespace peft::verbs {

struct InputGroup {
  MatrixGroup group;
  std::int64_t in = 0;
  // For each adapter its factor of each of the group's sites; null where it has none.
  std::vector<std::vector<const Factor*>> factors;
};

// Whether gate and up of these experts become one group in the layout: where they lie in one parameter, and either
// every adapter shares lora_A between them or the family stores their rows in turns.
struct JoinRule {
  bool one_parameter = false, interleaved = false;
};
JoinRule join_rule(const Model& model, Layout to, const Site& site);

// All sites that any adapter has, in natural order. Throws LO_SHAPE where adapters disagree about a matrix.
std::vector<InputGroup> groups_of(std::span<const Input> inputs, const Model& model, Layout to);

// scale * b * a^T of one adapter, as one pair for the whole group; no columns where it has none of the sites.
struct GroupFactors {
  low_rank::Factors values;
  double scale = 1;
};
GroupFactors read_group(const InputGroup& group, std::size_t which, const TensorFile& file);

}  // namespace peft::verbs
