// The verbs of the command line as functions: options in, report out, no printing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter.h"
#include "peft/engine.h"
#include "peft/execute.h"
#include "peft/layout.h"
#include "peft/plan.h"

namespace peft {

// Options that say how to read an adapter; shared by all verbs.
struct InputOptions {
  std::string base, family, families_file;
  std::int64_t num_experts = 0;
  std::string adapter_name;
  ReadOptions read;
  OpenOptions open;
  std::vector<std::string> further_names;  // without base and family: more names of the same model, to know its type by
};
// An adapter, opened, with its model and its factors. The first three stages in one step.
struct Input {
  Adapter adapter;
  Model model;
  Reading reading;
};
Input load(const std::string& path, const InputOptions& options);
Input load(Adapter adapter, const InputOptions& options);  // of an adapter that is open, or in memory
// Module paths of an adapter's tensors.
std::vector<std::string> module_names(const std::string& path, const InputOptions& options);

// ---- convert -------------------------------------------------------------------------------------------------
struct ConvertOptions {
  InputOptions input;
  Layout to = Layout::peft_fused;
  std::optional<Dtype> dtype;   // --dtype
  bool block_diagonal = false;  // keep gate and up apart even where they share A
  bool q8_0 = false;            // --dtype Q8_0: gguf only
  std::string gguf_base;        // --gguf-base: the model's GGUF file, whose names and shapes the adapter gets
};
// Everything is checked here; nothing is written.
Plan plan_convert(const Input& input, const ConvertOptions& options);

// A config alone: what adapter_config.json becomes. `path` is a config file or an adapter folder. Needs a module tree
// (--base).
struct ConfigConversion {
  std::string before, after;  // file texts
  std::vector<std::string> warnings;
};
ConfigConversion convert_config(const std::string& path, const ConvertOptions& options);
// A new adapter's config for a model of transformers 5: target_modules that name single experts' modules or routers, as
// they were in transformers 4, become target_parameters, where PEFT does so too. nullopt: they name none.
std::optional<AdapterConfig> rewrite_v4_targets(const AdapterConfig& config, const Model& model,
                                                std::vector<std::string>& warnings);

// ---- verify --------------------------------------------------------------------------------------------------
struct VerifyOptions {
  InputOptions a, b;
  bool tolerance_rounded = true;  // false: exact
  int threads = 0;
};
struct VerifyDifference {
  // What differs: the update of a matrix, a tensor that is carried along whole, or a field of the config.
  enum class Kind : std::uint8_t { update, tensor, config };
  Kind kind = Kind::update;
  Site site;         // of an update or a tensor
  std::string name;  // "model.layers.0.mlp.experts.7.gate", "score.weight", "alora_invocation_tokens"
  std::string what;  // in words
  double relative = 0;
};
struct VerifyReport {
  bool same = false;
  Exactness exactness = Exactness::bit_exact;  // how b differs from a, when same
  double largest_relative = 0;                 // ||dW_a - dW_b|| / max(||dW_a||, ||dW_b||), Frobenius
  std::string where;                           // what has the largest, as VerifyDifference::name
  std::int64_t compared = 0, identical = 0;
  std::vector<VerifyDifference> differences;  // up to 50
  std::int64_t num_differences = 0;
  std::vector<std::string> left_out;  // tensors that --ignore-unused left out of the comparison, and why
  std::vector<std::string> notes;
};
VerifyReport verify(const std::string& a, const std::string& b, const VerifyOptions& options);

// ---- inspect -------------------------------------------------------------------------------------------------
struct InspectReport {
  std::string path, producer, family, model_type, dtype;
  std::optional<Layout> layout;  // absent: it could not be decided, or there are no weights to read
  bool has_experts = false;      // without them the file is the same in every layout of its program
  std::vector<std::string> evidence;
  struct Row {
    std::string key, shape, meaning;
    std::int64_t count = 1;
  };
  std::vector<Row> tensors;  // grouped over layers and experts
  std::int64_t num_tensors = 0, num_layers = 0, num_experts = 0;
  std::uint64_t bytes = 0, parameters = 0;
  struct RankRow {
    std::string site;  // the end of the names that the row stands for: "q_proj", "experts gate"
    std::int64_t rank;
    double alpha, scale;
    std::int64_t count;
  };
  std::vector<RankRow> ranks;
  std::optional<Orientation> orientation;  // of fused experts
  std::optional<BPacking> b_packing;
  std::vector<std::string> anomalies, warnings;
  struct Consumer {
    std::string name;  // "vLLM 0.33"
    engines::Outcome outcome = engines::Outcome::unknown;
    std::string why;
  };
  std::vector<Consumer> consumers;
  // What the config says: r, lora_alpha, target_modules and the like, by their names there, as JSON texts. Also where
  // the weights cannot be opened.
  std::vector<std::pair<std::string, std::string>> config;
  std::string error;  // when the file cannot be decoded: what the reading said
};
InspectReport inspect(const std::string& path, const InputOptions& options);
InspectReport inspect(const Adapter& adapter, const InputOptions& options);  // that is open, or in memory

// ---- merge ---------------------------------------------------------------------------------------------------------
// Adding adapters to a model on disk: what becomes of each tensor, as a plan. execute() of peft/execute.h writes it.

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
  std::optional<Dtype> out_dtype;               // of the result alone; of a GGUF base: of tensors that change
  bool out_q8_0 = false;                        // --out-dtype Q8_0: of a GGUF base
  bool one_file = false;                        // a GGUF base of several files becomes one
  std::optional<std::uint64_t> max_shard_size;  // bytes; absent: the base's own shards
  bool keep_quantized = false;    // quantised tensors that no adapter touches stay as they are; GGUF: in their type
  bool base_is_residual = false;  // the base is the one that PiSSA, OLoRA, ... left behind
  bool allow_repeat = false;      // an adapter that the base says it already holds
};

// How an adapter changes a matrix or a vector of the model.
enum class MergeRule : std::uint8_t {
  linear,
  expert,
  parameter,
  embedding,
  conv1d,
  bias,        // lora_B.bias
  saved,       // a module that the adapter carries whole
  bias_saved,  // a bias of the base, trained
  tokens,      // rows of an embedding
};
std::string_view name(MergeRule rule);  // "linear"

// What happens to one matrix. `update` counts those of its planned tensor; -1 for what is put in place of the old.
struct MergedPart {
  std::size_t file = 0, tensor = 0;  // plan.files[file].tensors[tensor]
  std::int64_t update = -1;
  Site site;
  MergeRule rule = MergeRule::linear;
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

// ---- verify --merged -----------------------------------------------------------------------------------------------
// Whether a model is a base model with adapters merged into it, tensor by tensor; whoever merged it, in whatever form.

struct VerifyMergedOptions {
  std::string merged;  // the model in question
  MergeOptions merge;  // the base and the adapters that it should hold
  int threads = 0;
};

// How far elements are from W + delta in fp64. The bounds, for the dtype D of the merged tensor:
//   exact          the nearest number of D
//   one_rounding   half a unit in the last place of D, plus what a sum of that rank in fp32 may lose
//   two_roundings  of the coarser dtype of base and result, for every adapter: half a last place of the weight and half
//   one of
//                  the delta: tools that round the delta, cast the base first, or store after each adapter
struct MergeBounds {
  std::uint64_t exact = 0, one_rounding = 0, two_roundings = 0, beyond = 0;
  std::uint64_t all() const { return exact + one_rounding + two_roundings + beyond; }
};

struct MergedDifference {
  enum class Kind : std::uint8_t {
    not_merged,  // the base's values, where an adapter changes them
    scaled,      // a multiple of the delta was added
    different,   // something else was added
    changed,     // no adapter touches it, and the values are not the base's
    missing,     // or has another shape
    extra,
  };
  std::string tensor;        // describe(*site), or the tensor in the base's name
  std::optional<Site> site;  // the matrix, where an adapter changes it
  Kind kind = Kind::different;
  std::string what;            // in words
  double factor = 0;           // the multiple of the delta that was found; of "scaled", "not_merged" and "different"
  double relative = 0;         // ||merged - expected|| / ||delta|| (of "changed": / ||base||)
  std::uint64_t elements = 0;  // that are beyond the bounds
};

std::string_view name(MergedDifference::Kind kind);  // "not_merged"

struct VerifyMergedReport {
  bool same = false;
  std::size_t tensors = 0, changed = 0, copied = 0;  // expected tensors, those with updates, those without
  MergeBounds bounds;                                // of the elements with updates
  std::string bound;                                 // what the elements had to keep, in words
  std::string worst_tensor;                          // where an element is furthest from fp64, in last places
  double worst_places = 0;
  std::vector<MergedDifference> differences;  // up to 100
  std::int64_t num_differences = 0;
  std::vector<std::string> left_out;  // tensors of the adapters that --ignore-unused left out, and why
  std::vector<std::string> notes;
};
VerifyMergedReport verify_merged(const VerifyMergedOptions& options);

// ---- combine, resize, extract --------------------------------------------------------------------------------------
// Adapters out of adapters or checkpoints: combined, recovered, compressed. Everything that is computed here runs in
// fp64 and is rounded once; what that and a cut rank cost is measured against the exact matrices.

// What was made of one matrix (of gate and up together where they share lora_A).
struct LowRankSite {
  std::vector<Site> sites;  // one, or gate and up
  std::string name;         // "model.layers.0.mlp.experts.7.gate+up"
  std::int64_t rank = 0;
  double norm = 0;      // of the update that was asked for, Frobenius
  double relative = 0;  // ||what is stored - what was asked for|| / norm
};
// The plan holds the new factors in memory; execute() writes them.
struct LowRankResult {
  Plan plan;
  std::vector<LowRankSite> sites;     // in natural order
  double worst = 0, mean = 0;         // of LowRankSite::relative
  std::string where;                  // LowRankSite::name of the worst
  std::vector<std::string> left_out;  // names of sites that came out as zero
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

// ---- doctor --------------------------------------------------------------------------------------------------------
// Will an adapter work where it shall run? Verdicts for each kind of module, and the command that mends it.

struct DoctorOptions {
  InputOptions input;
  std::string engine;  // "vllm" or "vllm@0.33"; "": every engine in its newest version
};
struct DoctorReport {
  std::string path, model_type;
  Layout layout = Layout::peft_per_expert;
  bool has_experts = false;  // without them the file is the same in every layout of its program
  struct Part {
    engines::Part part = engines::Part::other;
    std::int64_t modules = 0, rank = 0;
    std::string example;  // one module
    engines::Verdict verdict = engines::Verdict::unknown;
    std::string why, message;  // in our words; in the engine's
    std::string shown_by;      // the golden case or the source that shows it; "" nothing speaks of it
    bool measured = false;     // the engine was run; else its source was read
  };
  struct Engine {
    std::string name, version, mode, title;
    engines::Outcome outcome = engines::Outcome::unknown;
    bool measured = false;
    std::vector<Part> parts;
    std::vector<std::string> run;  // how to start it, where it reads the file right
    std::string mend;              // the one command that mends it; "" where nothing needs to be
    bool right() const { return outcome == engines::Outcome::right; }
  };
  std::vector<Engine> engines;
  bool all_right = false;  // of the engine that was asked for
};
// Reads headers, not tensors, as far as the layout can be told from them.
DoctorReport doctor(const std::string& path, const DoctorOptions& options);

// ---- convert --for -------------------------------------------------------------------------------------------------
// Conversion for an engine: the layout, the names and the scales that it reads right, and how it is started.

struct EngineConversion {
  Plan plan;
  std::string engine, version, mode;  // "vllm", "0.33", "" or a way of running
  Layout layout = Layout::peft_per_expert;
  std::string why;               // why this form, where that is not plain
  std::vector<std::string> run;  // lines to copy: how the engine is started with the adapter
};
// `engine` is "vllm" or "vllm@0.33"; `out` is where the plan will be written, for the lines. options.to is not used.
// Throws USAGE for an engine or version that is not known, and LO_NO_FORM with a way out for what the engine reads
// right in no form.
EngineConversion plan_convert_for(const Input& input, const ConvertOptions& options, const std::string& engine,
                                  const std::string& out);

}  // namespace peft
