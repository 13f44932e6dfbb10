// Filling in what combine, resize and extract say about each matrix.
#pragma once

#include "peft/low_rank.h"
#include "verbs/new_adapter.h"

namespace peft::verbs {

// `error` is ||stored - wanted||, `norm` ||wanted||. Rank 0: the matrix came out as zero and is left out.
void record(LowRankResult& result, const Unit& unit, std::int64_t rank, double norm, double error);
void summarise(LowRankResult& result);  // worst and mean

}  // namespace peft::verbs
