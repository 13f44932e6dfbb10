// Adapters out of adapters or checkpoints: combined, recovered, compressed. Everything that is computed here runs in
// fp64 and is rounded once; what that and a cut rank cost is measured against the exact matrices.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/merge.h"
#include "peft/plan.h"
#include "peft/verbs.h"

namespace peft {

// What was made of one matrix (of gate and up together where they share lora_A).
struct LowRankSite {
  std::string site;  // "model.layers.0.mlp.experts.7.gate+up"
  std::int64_t rank = 0;
  double norm = 0;      // of the update that was asked for, Frobenius
  double relative = 0;  // ||what is stored - what was asked for|| / norm
};
// The plan holds the new factors in memory; execute() writes them.
struct LowRankResult {
  Plan plan;
  std::vector<LowRankSite> sites;     // in natural order
  double worst = 0, mean = 0;         // of LowRankSite::relative
  std::string where;                  // of the worst
  std::vector<std::string> left_out;  // sites that came out as zero
  std::vector<std::string> unused;    // tensors of the adapters that --ignore-unused left out, and why
  std::vector<std::string> notes;
};

// ---- combine -------------------------------------------------------------------------------------------------
enum class CombineType : std::uint8_t {
  linear,  // the weighted sum, at its own rank
  cat,     // the weighted sum, factors side by side
  svd,     // the weighted sum, cut to svd_rank
  ties,
  dare_linear,
  dare_ties,
  magnitude_prune,  // on A and on B apart, as PEFT has it
  ties_svd,
  dare_linear_svd,
  dare_ties_svd,
  magnitude_prune_svd,  // on whole updates, cut to svd_rank
};
std::span<const std::string_view> combine_types();  // by value of CombineType
std::optional<CombineType> parse_combine_type(std::string_view name);

struct CombineOptions {
  InputOptions input;
  CombineType type = CombineType::svd;
  std::optional<Layout> to;        // the first adapter's layout
  std::optional<Dtype> dtype;      // F32; F64 when an adapter has it
  std::int64_t svd_rank = 0;       // 0: the largest rank of the adapters
  std::optional<double> density;   // ties, dare, magnitude_prune need it
  bool majority_by_count = false;  // majority_sign_method="frequency"
  std::uint64_t seed = 0;          // of dare
  int threads = 0;
};
LowRankResult plan_combine(std::span<const WeightedAdapter> adapters, const CombineOptions& options);
// Of adapters that are open, in memory too; one weight for each.
LowRankResult plan_combine(std::span<const Input> inputs, std::span<const double> weights,
                           const CombineOptions& options);

// ---- resize --------------------------------------------------------------------------------------------------
struct ResizeOptions {
  InputOptions input;
  std::int64_t rank = 0;
  std::optional<Layout> to;
  std::optional<Dtype> dtype;  // F32; F64 when the adapter has it
  int threads = 0;
};
LowRankResult plan_resize(const std::string& adapter, const ResizeOptions& options);

// ---- extract -------------------------------------------------------------------------------------------------
struct ExtractOptions {
  std::string base, finetuned;  // model folders, in any form
  std::string family, families_file;
  std::int64_t rank = 0;
  std::optional<Layout> to;                  // peft-fused when a checkpoint has fused experts, else peft-per-expert
  std::optional<Dtype> dtype;                // F32
  std::vector<std::string> modules_to_save;  // modules whose change is carried whole: "norm", "lm_head"
  bool ignore_unused = false;                // go on where something changed that LoRA cannot hold
  OpenOptions open;
  int threads = 0;
};
LowRankResult plan_extract(const ExtractOptions& options);

}  // namespace peft
