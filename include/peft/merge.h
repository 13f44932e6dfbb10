// Adding adapters to a model on disk: what becomes of each tensor, as a plan. execute() of peft/execute.h writes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "peft/verbs.h"

namespace peft {

struct WeightedAdapter {
  std::string path;
  double weight = 1;  // multiplies the scale of every factor
};
// DIR@WEIGHT: cut at the last @ that a number follows, unless a folder of the whole name exists.
WeightedAdapter parse_weighted_adapter(const std::string& text);

struct MergeOptions {
  std::string base;
  std::vector<WeightedAdapter> adapters;  // added in this order
  InputOptions input;                     // how the adapters are read; its `base` is not used
  MergeMode mode = MergeMode::best;
  std::optional<Dtype> base_dtype;              // casts the base first, as loading it with this dtype does
  std::optional<Dtype> out_dtype;               // of the result alone
  std::optional<std::uint64_t> max_shard_size;  // bytes; absent: the base's own shards
  bool keep_quantized = false;                  // quantised tensors that no adapter touches stay as they are
  bool base_is_residual = false;                // the base is the one that PiSSA, OLoRA, ... left behind
  bool allow_repeat = false;                    // an adapter that the base says it already holds
};

// What happens to one matrix. `update` counts those of its planned tensor; -1 for what is put in place of the old.
struct MergedPart {
  std::size_t file = 0, tensor = 0;  // plan.files[file].tensors[tensor]
  std::int64_t update = -1;
  std::string site;  // "model.layers.0.mlp.experts.7.gate"
  std::string rule;  // "linear", "expert", "parameter", "embedding", "conv1d", "bias", "saved", "tokens"
  bool dora = false;
  std::uint32_t adapter = 0;
  std::int64_t rank = 0;
  double scale = 0;  // the weight included
};

struct MergePlan {
  Plan plan;
  std::vector<MergedPart> parts;                         // in the order of the plan
  std::vector<std::string> zero_deltas;                  // sites whose factors are zero: nothing of them changes
  std::vector<std::string> unused;                       // tensors that --ignore-unused left out, and why
  std::vector<std::string> layouts;                      // of the adapters
  std::vector<std::string> digests;                      // what the output remembers of the adapters
  std::size_t changed = 0, copied = 0, dequantized = 0;  // tensors of the output
  bool untied = false;                                   // the output embedding became a tensor of its own
  bool own_output = false;  // the base's config says tied, and its file has another output embedding: both are used
  double seconds_estimate = 0;
};
// Everything is checked here; nothing is written.
MergePlan plan_merge(const MergeOptions& options);

// "5GB", "512MiB", "1000": as huggingface_hub reads sizes. Throws USAGE.
std::uint64_t parse_size(std::string_view text);

std::string_view name(MergeMode mode);  // "peft-safe"
std::optional<MergeMode> parse_merge_mode(std::string_view name);

}  // namespace peft
