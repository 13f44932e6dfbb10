// What the shapes of an adapter mean, in words, one row for all layers and experts that look alike.
#pragma once

#include <vector>

#include "peft/verbs.h"

namespace peft::verbs {

// Every tensor of the file is in exactly one row. Without a reading (`decoded` false) the meaning is left out.
std::vector<InspectReport::Row> describe_tensors(const Input& input, bool decoded);
// Rank, alpha and scale, one row per kind of site and distinct values.
std::vector<InspectReport::RankRow> describe_ranks(const Input& input);

// "model.layers.{layer}.mlp.experts.{expert}.gate_proj": numbers as placeholders.
std::string pattern_of(std::string_view name);

}  // namespace peft::verbs
