#include <filesystem>

#include "model/builder.h"
#include "model/tree_table.h"
#include "peft/error.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

using model::ConfigFacts;
using model::Draft;
using model::Json;
using model::OrderedJson;
using model::Table;

// An adapter may lie beside the config.json of its base: its weights are not the base's. A folder of shards without
// their index is described by its config.json too, with a note.
bool has_checkpoint(const fs::path& folder) {
  std::error_code status;
  return fs::exists(folder / "model.safetensors.index.json", status) ||
         fs::exists(folder / "model.safetensors", status);
}

std::string note_on_unused_weights(const fs::path& folder) {
  std::error_code status;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".safetensors") && !name.starts_with("adapter")) names.push_back(name);
  }
  if (names.empty()) return {};
  return "shapes come from config.json: " + *std::min_element(names.begin(), names.end()) +
         " is not looked at, because there is no model.safetensors and no index of shards";
}

bool knows(const Table& table, const std::string& type) {
  return table.families.contains(type) || table.dense.contains(type) || table.part_of.contains(type);
}

// The row for a base: by its own model_type; --family must agree with it, or fill in for a type the table lacks.
Draft draft_for_base(const std::shared_ptr<const Table>& table, const std::string& stated,
                     const DescribeOptions& options) {
  if (options.family.empty() || stated == options.family) return model::draft_for(table, stated, options.base);
  if (!knows(*table, stated)) return model::draft_for(table, options.family, options.base);
  throw Error(ErrorCode::MD_FAMILY, {.file = options.base,
                                     .tensor = "model_type",
                                     .problem = "the base is of another family than --family says",
                                     .expected = options.family,
                                     .got = stated,
                                     .hint = "leave --family out"});
}

// Facts every model with a config has.
void finish(Draft& draft, const DescribeOptions& options) {
  Model& result = draft.model;
  if (options.num_experts > 0) {
    for (Experts& experts : result.experts) {
      if (experts.num_experts > 0 && experts.num_experts != options.num_experts) {
        throw Error(ErrorCode::USAGE, {.file = options.base,
                                       .problem = "--num-experts is not what the base says",
                                       .expected = std::to_string(experts.num_experts),
                                       .got = std::to_string(options.num_experts)});
      }
      experts.num_experts = options.num_experts;
    }
  }
  result.vocab_size = draft.facts.vocab_size();
  const auto& tree = result.v5 ? result.v5 : result.v4;
  if (result.vocab_size == 0 && tree && !tree->input_embedding.empty()) {
    const Module* embedding = tree->find(tree->input_embedding);
    if (embedding->weight.size() == 2) result.vocab_size = embedding->weight[0];
  }
  result.tie_word_embeddings = draft.facts.tie_word_embeddings().value_or(result.tie_word_embeddings);
  const auto output = model::own_output(draft);
  // A class without an output embedding has nothing to tie, whatever its config says.
  if (output == "") result.tie_word_embeddings = false;
  for (auto* tree_of_one : {&result.v4, &result.v5}) {
    if (output && *tree_of_one && (*tree_of_one)->output_embedding.empty() && (*tree_of_one)->find(*output))
      (*tree_of_one)->output_embedding = *output;
  }
  result.fp8_cell = draft.facts.fp8_cell().value_or(result.fp8_cell);
}

bool names_experts(const Checkpoint& checkpoint) {
  for (const Checkpoint::Entry& entry : checkpoint.tensors()) {
    if (entry.tensor->name.find(".experts.") != std::string_view::npos) return true;
  }
  return false;
}

bool has_output_tensor(const ModuleTree& shown, const Checkpoint& checkpoint) {
  return shown.output_embedding.empty() || checkpoint.find(shown.output_embedding + ".weight") != nullptr;
}

Model from_checkpoint(const std::shared_ptr<const Table>& table, ConfigFacts facts, const DescribeOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(options.base);
  const std::string type = facts.model_type();
  const std::string& known = options.family.empty() ? type : options.family;
  const bool plain = !knows(*table, known) && !knows(*table, type) && !names_experts(checkpoint);
  Draft draft = plain ? model::draft_without_row(table, type) : draft_for_base(table, type, options);
  if (plain)
    draft.model.notes.push_back("model type \"" + type +
                                "\" is not in the family table; its modules are taken from the tensor names");
  draft.facts = std::move(facts);
  ModuleTree shown = model::tree_from_checkpoint(checkpoint, draft);
  model::finish_tree(shown);
  draft.model.tie_word_embeddings = !has_output_tensor(shown, checkpoint);
  model::use_shown_tree(draft, std::move(shown), false);
  draft.model.source = "config.json and tensor headers of " + options.base;
  for (const std::string& note : checkpoint.notes()) draft.model.notes.push_back(note);
  finish(draft, options);
  return std::move(draft.model);
}

// A config of a type that the table lacks: the adapter's own names serve, as they do without a base.
Model from_unknown_config(const std::shared_ptr<const Table>& table, ConfigFacts facts,
                          const DescribeOptions& options) {
  Draft draft = model::draft_without_row(table, facts.model_type());
  draft.model = model::model_from_names(table, options.names, options.num_experts);
  draft.model.default_targets_type = facts.model_type();
  draft.model.source = "names alone, and config.json (" + facts.file() + ")";
  draft.model.notes.push_back("model type \"" + facts.model_type() +
                              "\" is not in the family table; its modules are taken from the adapter's names");
  draft.facts = std::move(facts);
  finish(draft, options);
  return std::move(draft.model);
}

// A dense type that has no row, but whose modules are known.
std::optional<Model> from_trees_alone(const std::shared_ptr<const Table>& table, const ConfigFacts& facts,
                                      const DescribeOptions& options) {
  if (model::find_trees(facts.model_type()) == nullptr) return std::nullopt;
  Draft draft = model::draft_for_trees(table, facts.model_type());
  draft.model.source = "config.json and module trees (" + facts.file() + ")";
  draft.facts = facts;
  model::use_config_alone(draft);
  if (!draft.model.v4 && !draft.model.v5) return std::nullopt;
  finish(draft, options);
  return std::move(draft.model);
}

Model from_config(const std::shared_ptr<const Table>& table, ConfigFacts facts, const DescribeOptions& options) {
  const std::string type = facts.model_type();
  if (options.family.empty() && !type.empty() && !knows(*table, type)) {
    if (auto known = from_trees_alone(table, facts, options)) return *std::move(known);
    return from_unknown_config(table, std::move(facts), options);
  }
  Draft draft = draft_for_base(table, facts.model_type(), options);
  draft.model.source = "config.json and family table (" + facts.file() + ")";
  draft.facts = std::move(facts);
  model::use_config_alone(draft);
  finish(draft, options);
  return std::move(draft.model);
}

Model from_tree_file(const std::shared_ptr<const Table>& table, const std::string& text,
                     const DescribeOptions& options) {
  const OrderedJson json = model::parse_ordered_object(text, options.base, ErrorCode::MD_FORM);
  const auto type = json.find("model_type");
  if (type == json.end() || !type->is_string()) {
    throw Error(ErrorCode::MD_FORM,
                {.file = options.base, .tensor = "model_type", .problem = "a module tree without a model type"});
  }
  Draft draft = draft_for_base(table, type->get<std::string>(), options);
  const auto config = json.find("config");
  Json facts = config != json.end() && config->is_object() ? Json::parse(config->dump()) : Json::object();
  facts["model_type"] = *type;
  draft.facts = ConfigFacts(std::move(facts), options.base);
  model::use_shown_tree(draft, model::tree_from_file(json, options.base, *draft.index), true);
  draft.model.source = "module tree " + options.base;
  finish(draft, options);
  return std::move(draft.model);
}

Model from_file(const std::shared_ptr<const Table>& table, const DescribeOptions& options) {
  const std::string text = model::read_text(options.base);
  Json json = model::parse_object(text, options.base, ErrorCode::MD_FORM);
  if (json.contains("weights") && json.contains("parameters")) return from_tree_file(table, text, options);
  return from_config(table, ConfigFacts(std::move(json), options.base), options);
}

Model from_folder(const std::shared_ptr<const Table>& table, const DescribeOptions& options) {
  const fs::path config = fs::path(options.base) / "config.json";
  std::error_code status;
  if (!fs::exists(config, status)) {
    throw Error(ErrorCode::MD_FORM, {.file = options.base, .problem = "the model folder has no config.json"});
  }
  ConfigFacts facts(model::parse_object(model::read_text(config.string()), config.string(), ErrorCode::MD_FORM),
                    config.string());
  if (has_checkpoint(options.base)) return from_checkpoint(table, std::move(facts), options);
  Model model = from_config(table, std::move(facts), options);
  if (std::string note = note_on_unused_weights(options.base); !note.empty()) model.notes.push_back(std::move(note));
  return model;
}

// A composite's adapter may come from its text class, whose names have another prefix.
Model from_family(const std::shared_ptr<const Table>& table, const DescribeOptions& options) {
  Draft draft = model::draft_for(table, options.family, {});
  model::use_names(draft, options.names, options.num_experts);
  if (draft.model.experts.empty() && draft.family() != nullptr) {
    for (const auto& [key, type] : draft.family()->sub_configs) {
      if (!table->families.contains(type)) continue;
      Draft part = model::draft_for(table, type, {});
      model::use_names(part, options.names, options.num_experts);
      if (part.model.experts.empty()) continue;
      part.model.notes.push_back("the names are those of \"" + type + "\", the text part of \"" + options.family +
                                 "\"");
      draft = std::move(part);
      break;
    }
  }
  draft.model.source = "family table (" + options.family + ") and names";
  return std::move(draft.model);
}

}  // namespace

Model describe(const DescribeOptions& options) {
  const auto table = model::load_table(options.families_file);
  if (!options.base.empty()) {
    std::error_code status;
    if (fs::is_directory(options.base, status)) return from_folder(table, options);
    return from_file(table, options);
  }
  if (!options.family.empty()) return from_family(table, options);
  Model result = model::model_from_names(table, options.names, options.num_experts);
  result.source = "names alone";
  return result;
}

}  // namespace peft
