// The rows of the family table, data/families.json. docs/add_a_family.md says what each field means.
// What is known of model types is data: no code outside of the tables has the name of one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/expression.h"
#include "peft/model.h"

namespace peft::model {

struct ParameterRow {
  std::string name;               // below the block: "gate.weight"; of a form: "gate_up_proj"
  std::vector<std::string> dims;  // formulas
  std::string owner;              // class that owns it: "Linear", "MixtralTopKRouter"
};

// One way to hold experts: parameters of one module, or one module per expert.
struct FormRow {
  bool modules = false;
  std::vector<ParameterRow> params;  // in registration order; of a per-expert module: its Linears
  std::map<std::string, std::string> roles;
  std::string fused;  // the parameter that holds gate and up
  bool interleaved = false;
  std::string layout;                 // "out,in", "in,out", or "" where the table does not say
  std::optional<bool> is_transposed;  // the attribute of the class; absent: it has none
  std::string expert_name = "{expert}";
};

struct ExpertsRow {
  std::string path, block, class_name;
  std::string config;  // the sub-config the keys are in; "" the top one
  std::string form_id;
  FormRow form;
  std::map<std::string, std::string> keys;  // "E" -> "num_local_experts"
  std::vector<std::string> moe_layers;      // rules; all hold
  std::string default_layers;               // "3..60", "1..31/2"
  Json layer_keys = Json::object();         // keys about layers and their defaults
  std::vector<ParameterRow> router, shared;
  std::vector<std::pair<std::string, std::string>> disk;  // name in a checkpoint, name in memory
};

struct GenerationRow {
  std::string arch;
  std::vector<ExpertsRow> experts;
  std::vector<std::string> linears;  // path templates of the Linears of the text part
};

// One kind of experts of a family, in both generations. describe() makes Experts of it, once for each layer.
struct Kind {
  ExpertsForm form;
  std::string v4_path, v5_path;  // templates; "" when that generation has none
  std::string v4_block, v5_block;
  std::vector<const ExpertsRow*> v4, v5;  // granite v4 has two rows (input_linear, output_linear) for one kind

  const std::string& path(Generation g) const { return g == Generation::v4 ? v4_path : v5_path; }
  const std::string& block(Generation g) const { return g == Generation::v4 ? v4_block : v5_block; }
  const std::vector<const ExpertsRow*>& rows(Generation g) const { return g == Generation::v4 ? v4 : v5; }
};

// The start of a path in the two generations.
struct Renaming {
  std::string v4, v5;  // templates, at most {layer} in them
};

// A renaming of transformers' loader: a regular expression, what replaces it, and the part of the model it is about.
struct NameRule {
  std::string pattern, replacement, scope;
};

struct Family {
  std::string model_type;
  std::optional<GenerationRow> v4, v5;
  std::map<std::string, std::string> sub_configs;  // "text_config" -> "qwen3_5_moe_text"
  std::vector<Kind> kinds;
  std::vector<Renaming> renamings;
  std::vector<NameRule> name_rules;  // from names in a checkpoint to those of v5, applied in order
  std::vector<NameRule>
      part_rules;  // then one of these: a tensor that is a part of a v5 parameter, or is stored otherwise
  std::vector<std::pair<std::string, std::string>>
      optional_prefixes;             // "model.", "language_model.": the text class lacks the second
  std::vector<std::string> ignored;  // regular expressions: tensors that the class drops without a word
  std::string peft_config;           // PEFT's own conversion table; "" none

  Family() = default;
  Family(const Family&) = delete;  // kinds point into v4 and v5
  Family& operator=(const Family&) = delete;
  const std::optional<GenerationRow>& generation(Generation g) const { return g == Generation::v4 ? v4 : v5; }
};

struct DenseLinear {
  std::string path;
  std::vector<std::string> dims;
  ModuleKind kind = ModuleKind::linear;
  std::string class_name;
};
struct DenseFamily {
  std::string model_type;
  std::optional<std::vector<DenseLinear>> v4, v5;
  std::string arch;
  const std::optional<std::vector<DenseLinear>>& generation(Generation g) const {
    return g == Generation::v4 ? v4 : v5;
  }
};

// Which layers have a module that only some layers have. The first rule whose keys the config has decides.
struct ModuleRule {
  std::string type;  // of the model; "*": any
  std::string part;  // of the path behind the layer: "linear_attn", "self_attn.q_a_proj"
  std::vector<std::string> rules;
};

// Names that a program gives to single experts of a type, and transformers does not.
struct Spelling {
  std::string program;  // "vllm"
  std::string experts;  // template: "model.layers.{layer}.moe.experts"
  std::vector<ExpertsForm::PerExpert> modules;
};

struct Table {
  std::map<std::string, std::shared_ptr<const Family>, std::less<>> families;
  std::map<std::string, std::shared_ptr<const DenseFamily>, std::less<>> dense;
  // By type: the modules directly in the block of layers without experts, where the default model has no such layers.
  std::map<std::string, std::vector<DenseLinear>, std::less<>> dense_layers;
  std::vector<ModuleRule> module_rules;  // those of a type before those of any; longer parts first
  std::vector<std::string> layer_rules;  // every rule about layers with experts, for configs with another family's keys
  std::set<std::string, std::less<>>
      replaced;  // types whose rows are from --families: module_trees.json does not describe them
  std::vector<std::pair<std::string, std::string>> same_prefixes;       // prefixes that stand for the same module
  std::map<std::string, std::vector<Spelling>, std::less<>> spellings;  // by type
  std::map<std::string, std::string, std::less<>> part_of;  // a type without classes of its own -> its composite
  Json runtime = Json::object();                            // by type: what runtime_table.h reads
};

}  // namespace peft::model
