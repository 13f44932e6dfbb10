// The operators that make one matrix of several: those of PEFT's add_weighted_adapter (peft/utils/merge_utils.py).
//
// linear           sum of w_i x_i
// magnitude_prune  the same, of each x_i only the int(density * n) elements of the largest magnitude
// dare_linear      the same, of each x_i a random part, divided by density
// ties             pruned by magnitude. The pruned x_i, without weights, elect a sign for each element; the element is
// the
//                  mean of the w_i x_i that have this sign
// dare_ties        the same after random pruning
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "low_rank/dense.h"

namespace peft::low_rank {

enum class Operator : std::uint8_t { linear, magnitude_prune, dare_linear, ties, dare_ties };

struct OperatorOptions {
  double density = 1;              // 0 to 1: the part that is kept
  bool majority_by_count = false;  // the sign most matrices have; else the sign of their sum
  std::uint64_t seed = 0;          // of random pruning
};

// Keeps the int(density * n) elements of the largest magnitude; of equal ones the first, row by row.
void prune_by_magnitude(Dense& m, double density);
// Keeps each element with probability `density` and divides by it. `stream` sets matrices of one seed apart; element
// (i, j) depends on seed, stream, i and j only, so the result is the same whoever computes it.
void prune_at_random(Dense& m, double density, std::uint64_t seed, std::uint64_t stream);
std::uint64_t stream_of(std::string_view name, std::uint64_t index);

// All of the same shape. `streams` has one number for each.
Dense apply(Operator op, std::vector<Dense> matrices, std::span<const double> weights, const OperatorOptions& options,
            std::span<const std::uint64_t> streams);

}  // namespace peft::low_rank
