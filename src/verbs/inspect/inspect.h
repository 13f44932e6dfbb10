// What the shapes and numbers of an adapter tell at a glance, in words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engines/facts.h"
#include "peft/verbs.h"

namespace peft::verbs {

// One row for all layers and experts that look alike. Every tensor of the file is in exactly one row. Without a reading
// (`decoded` false) the meaning is left out.
std::vector<InspectReport::Row> describe_tensors(const Input& input, bool decoded);
// Rank, alpha and scale, one row for each kind of site and distinct values.
std::vector<InspectReport::RankRow> describe_ranks(const Input& input);

// "model.layers.{layer}.mlp.experts.{expert}.gate_proj": numbers as placeholders.
std::string pattern_of(std::string_view name);

struct ValueCounts {
  std::uint64_t nan = 0, positive_infinity = 0, negative_infinity = 0;
  bool all_zero = true;
};
// Reads the tensor once. Dtypes without NaN count only zeros.
ValueCounts count_values(const TensorFile& file, const TensorInfo& tensor);

// Sentences about the tensors of the factors: pairs whose B is zero, tensors with NaN or infinity.
std::vector<std::string> value_anomalies(const Adapter& adapter, const Factors& factors);

// What the engines that have a row in the table of `peft inspect` make of an adapter.
std::vector<InspectReport::Consumer> consumers_of(const engines::AdapterFacts& facts);

}  // namespace peft::verbs
