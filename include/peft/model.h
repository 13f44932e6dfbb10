// What the modules of a base model are called and shaped, in both transformers generations.
// A Model comes from a model folder, a module-tree file, a config.json with the family table, or, for names
// alone, from a model_type. Nothing here reads weights: names and shapes only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/config.h"

namespace peft {

// The generation of transformers whose module names are meant: v4 (per-expert modules), v5 (fused parameters).
enum class Generation : std::uint8_t { v4, v5 };

enum class Projection : std::uint8_t { none, gate, up, down };
std::string_view name(Projection projection);  // "", "gate", "up", "down"

enum class ModuleKind : std::uint8_t {
  linear,     // torch.nn.Linear: weight [out, in]
  conv1d,     // transformers' Conv1D: weight [in, out]
  embedding,  // torch.nn.Embedding: weight [vocabulary, dim]
  conv,       // torch.nn.Conv1d, 2d, 3d
  other,      // owns parameters itself: routers, experts, norms
};

struct Module {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  ModuleKind kind = ModuleKind::other;
  std::string class_name;            // "Linear", "MixtralTopKRouter"
  std::vector<std::int64_t> weight;  // shape of its weight; empty when unknown or none
};
struct Parameter {     // an nn.Parameter of a module of kind `other`, in registration order
  std::string module;  // "model.layers.0.mlp.experts"
  std::string name;    // "gate_up_proj"
  std::vector<std::int64_t> shape;
  std::string full_name() const { return module + "." + name; }
};
// The modules that hold weights, in registration order. Containers are the proper prefixes of the names.
struct ModuleTree {
  std::vector<Module> modules;
  std::vector<Parameter> parameters;
  std::string output_embedding;  // the module get_output_embeddings() gives ("lm_head"), or ""
  std::string input_embedding;
  bool complete = true;  // false: from a config alone; a module that is not listed may exist all the same
  const Module* find(std::string_view module) const;
  const Parameter* find_parameter(std::string_view full_name) const;

  // Makes the two find() hash lookups. To be called again after a change of the lists.
  void build_lookup();
  struct Lookup;
  std::shared_ptr<const Lookup> lookup;
};

// How a family holds its experts. Static data: one row of the table, shared by all layers.
struct ExpertsForm {
  // One module per expert and projection (v4; or only on disk).
  struct PerExpert {
    Projection projection;
    std::string name;
  };                                  // gate "w1", up "w3", down "w2"
  std::vector<PerExpert> per_expert;  // order gate, up, down; a two-layer expert has up and down. Empty: no such form
  std::string expert_name = "{expert}";  // or "expert_{expert}"
  bool per_expert_on_disk_only = false;  // no transformers version has such modules; checkpoints name them so

  // Parameters that hold all experts, in registration order (first registered = innermost PEFT wrapper).
  struct Fused {
    std::string module;  // relative to the experts path: "" (same module); granite v4: sibling "../input_linear"
    std::string name;    // "gate_up_proj"
    std::vector<Projection> projections;  // {gate, up}, {down}; empty: something else (a bias)
    bool interleaved = false;             // output rows gate, up, gate, up ... (gpt_oss); else all gate, then all up
    bool in_out = false;                  // stored [E, in, out]; else [E, out, in]
    std::optional<bool> is_transposed;    // the attribute PEFT reads; absent: the class has none
    std::vector<std::string> dims;        // formulas: "E", "2I", "H"
  };
  std::vector<Fused> v4, v5;
  const std::vector<Fused>& fused(Generation g) const { return g == Generation::v4 ? v4 : v5; }
};

// The experts of one layer.
struct Experts {
  const ExpertsForm* form = nullptr;
  // "model.layers.0.block_sparse_moe.experts"; "" when that generation has none. Where only checkpoints name experts
  // one by one (form->per_expert_on_disk_only), v4_module is their path there.
  std::string v4_module, v5_module;
  std::int64_t layer = 0;
  std::int64_t num_experts = 0;                                  // 0: unknown
  std::int64_t hidden = 0, intermediate = 0;                     // what gate and up read, what down reads; 0: unknown
  std::vector<std::pair<std::string, std::int64_t>> other_dims;  // further names in the formulas: "zero_expert_num"
  std::string_view module(Generation g) const { return g == Generation::v4 ? v4_module : v5_module; }
  // Full path of one expert's module: "model.layers.0.mlp.experts.7.gate_proj"
  std::string per_expert_module(std::int64_t expert, Projection projection) const;
  // Full module path and shape [d0, d1, d2] of a fused parameter; unknown dimensions are 0.
  std::string fused_module(Generation g, const ExpertsForm::Fused& parameter) const;
  std::vector<std::int64_t> fused_shape(const ExpertsForm::Fused& parameter) const;
};
// What Site::module is for experts: the v5 path of the module; where that generation has none, the v4 path.
inline const std::string& experts_module(const Experts& experts) {
  return experts.v5_module.empty() ? experts.v4_module : experts.v5_module;
}

struct DescribeOptions {
  std::string base = {};                // model folder, config.json, or module-tree file
  std::string family = {};              // model_type; alone (names only), or against what base says
  std::string families_file = {};       // further families, in the form of data/families.json
  std::int64_t num_experts = 0;         // 0: from base or the adapter
  std::vector<std::string> names = {};  // module paths of the adapter: layers are found in them when there is no base
};

class Model {
 public:
  std::string model_type;  // "mixtral"; "" when nothing is known
  std::string source;      // where the facts come from, in words
  std::vector<std::string> notes;
  std::optional<ModuleTree> v4, v5;  // absent: unknown, or that generation does not have this type
  std::vector<Experts> experts;      // by layer
  bool num_experts_assumed = false;  // E is highest index + 1 of the file
  // The base shows names or shapes that only this generation has, or the type exists in this one alone.
  bool base_is_v4_only = false, base_is_v5_only = false;
  std::string default_targets_type;  // key of PEFT's default target table
  std::string peft_config;           // PEFT's config conversion table for this type ("mixtral", "qwen2_moe"); "" none
  // (for config.json facts other stages need)
  std::int64_t vocab_size = 0;
  std::int64_t num_heads = 0, num_kv_heads = 0;  // of attention; 0: unknown
  bool tie_word_embeddings = false;
  std::array<std::int64_t, 2> fp8_cell{128, 128};  // rows and columns under one scale: weight_block_size

  const std::optional<ModuleTree>& tree(Generation g) const { return g == Generation::v4 ? v4 : v5; }

  // The experts a module path belongs to, in either generation's spelling.
  struct Located {
    const Experts* experts = nullptr;
    std::int64_t expert = -1;                  // per-expert modules; -1: the experts module itself (fused)
    Projection projection = Projection::none;  // per-expert modules
    const ExpertsForm::Fused* fused =
        nullptr;  // set when the path is a module with exactly one fused parameter (granite v4)
    std::optional<Generation> fused_generation;  // which list `fused` is from
  };
  // nullopt: not experts (dense, router, shared expert). Throws LO_EXPERT for "experts.01.w1", "experts.-1.w1".
  // An index >= num_experts (when known and not assumed) throws LO_EXPERT too.
  std::optional<Located> locate(std::string_view module_path) const;

  // Dense modules and routers between generations; a name the table does not know stays as it is.
  std::string rename(std::string_view module_path, Generation from, Generation to) const;
  // What the module is in that generation; nullopt when unknown. A v5 router is `other` (its "weight" is a parameter).
  std::optional<ModuleKind> kind(Generation g, std::string_view module_path) const;
  // Whether the path is a module of that generation, as far as is known; nullopt: unknown.
  std::optional<bool> has(Generation g, std::string_view module_path) const;

  // Made by describe(); a Model without it locates and renames nothing.
  struct Index;
  std::shared_ptr<const Index> index;
};

Model describe(const DescribeOptions& options);

// The table, for `peft families` and docs.
struct FamilyRow {
  std::string model_type, v4_experts, v5_experts, orientation, gate_up, per_expert_names, config_keys, peft_config,
      router, note;
  bool dense = false;
};
std::vector<FamilyRow> families(const std::string& families_file = {});

// ---- targets -------------------------------------------------------------------------------------------------------
// Which modules and parameters a config puts LoRA on, as PEFT decides it.

struct Target {
  std::string name;  // module, or parameter ("….experts.gate_up_proj")
  bool parameter = false;
  std::int64_t rank = 0;
  double alpha = 0, scaling = 0;
  std::vector<std::int64_t> shape;  // of the weight
  std::vector<std::int64_t> a, b;   // shapes of lora_A and lora_B as this PEFT version makes them
  std::string key;                  // place on disk below base_model.model.: "….experts.base_layer"
  std::string pattern;              // which entry matched, for explanations
};

struct ResolvedTargets {
  std::vector<Target> targets;  // sorted by name
  std::vector<std::string> modules_to_save;
  std::vector<std::string>
      warnings;                // PEFT's own, and ours (entries and patterns that match nothing, precedence traps)
  AdapterConfig config_after;  // the config PEFT would save: all-linear resolved, targets minimised, ...
  std::vector<std::string> excluded;
};

// `as_of`: the PEFT version whose rules hold (layer index rule, swap rule, errors); default the newest known.
// Throws CF_TARGET when PEFT finds nothing or refuses a target (ErrorDetail::problem says it in our words,
// ErrorDetail::python_error has the name of PEFT's exception class).
ResolvedTargets resolve_targets(const AdapterConfig& config, const ModuleTree& tree, const Model& model,
                                Generation generation, std::optional<AdapterConfig::Version> as_of = std::nullopt);

// print_trainable_parameters, character for character.
std::string trainable_line(std::int64_t trainable, std::int64_t all);

}  // namespace peft
