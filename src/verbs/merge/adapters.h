// The adapters of a merge: opened, decoded, and checked for what would spoil a model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/verbs.h"

namespace peft::merging {

struct MergeAdapter {
  Adapter adapter;
  Reading reading;
  double weight = 1;
  std::uint32_t source = 0;       // which of the plan's sources holds its tensors
  std::string digest;             // of its weights and config
  std::vector<std::string> zero;  // sites of factors that add nothing
};

// Throws LO_INIT for one that belongs to a changed base, NUM_NONFINITE, and what decoding throws. `first_source`: the
// number of the first adapter's file among the plan's sources.
std::vector<MergeAdapter> open_adapters(const MergeOptions& options, const Model& model, std::uint32_t first_source);

// "merged adapters" of a file's metadata: what is already in the base. LO_REPEAT for one that is given again.
inline constexpr const char* kMergedKey = "peft.merged";
void refuse_repeats(const std::vector<MergeAdapter>& adapters, const std::vector<Metadata>& base);
// The base's own record with these adapters added: a JSON list, as text.
std::string merged_record(const std::vector<MergeAdapter>& adapters, const Metadata& base);

// The adapter read as one of such a class, its sites named as the base has them. nullopt: the base knows some of them
// under no such name, or the family has no other class.
std::optional<Reading> read_as_other_class(const Adapter& adapter, const Model& base, const MergeOptions& options);

}  // namespace peft::merging
