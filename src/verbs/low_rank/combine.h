// The arithmetic of combine and resize: one group of matrices of several adapters becomes one pair.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "low_rank/operators.h"
#include "peft/verbs.h"
#include "verbs/low_rank/new_adapter.h"

namespace peft::verbs {

// How a type of `combine` computes.
struct CombineRule {
  enum class On : std::uint8_t { sum, factors, updates };  // what the operator works on
  On on = On::sum;
  low_rank::Operator op = low_rank::Operator::linear;
  low_rank::OperatorOptions options;
  bool side_by_side = false;  // sum: keep the factors as they are
  std::int64_t most = 0;      // the rank to cut to; 0: none
};
CombineRule rule_of(CombineType type);

struct CombinedGroup {
  std::optional<StoredPair> pair;  // absent: the result is zero
  double norm = 0, error = 0;      // of what was asked for, and of what is stored minus that
};
// Throws LO_RANK where factors of different ranks are to be added element by element.
CombinedGroup combine_group(const InputGroup& group, std::span<const Input> inputs, std::span<const double> weights,
                            const CombineRule& rule, Dtype dtype);

// Bytes that combine_group needs for the group at its peak.
std::uint64_t memory_of(const InputGroup& group, const CombineRule& rule);

}  // namespace peft::verbs
