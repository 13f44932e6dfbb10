#include "peft/model.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <unordered_map>

#include "model/describe/draft.h"
#include "model/describe/from_checkpoint.h"
#include "model/describe/from_config.h"
#include "model/describe/from_names.h"
#include "model/describe/shown_tree.h"
#include "model/families/families.h"
#include "model/families/index.h"
#include "model/json_file.h"
#include "model/path.h"
#include "model/trees/tree_file.h"
#include "peft/error.h"

namespace peft {

using model::find_place;
using model::path_key;
using model::PathKey;
using model::PathTemplate;

std::string_view name(Projection projection) {
  switch (projection) {
    case Projection::none:
      return "";
    case Projection::gate:
      return "gate";
    case Projection::up:
      return "up";
    case Projection::down:
      return "down";
  }
  return "";
}

// ---- ModuleTree -------------------------------------------------------------------------------------------------

struct ModuleTree::Lookup {
  std::unordered_map<std::string, std::size_t> modules, parameters;
};

void ModuleTree::build_lookup() {
  auto fresh = std::make_shared<Lookup>();
  fresh->modules.reserve(modules.size());
  fresh->parameters.reserve(parameters.size());
  for (std::size_t i = 0; i < modules.size(); ++i) fresh->modules.try_emplace(modules[i].name, i);
  for (std::size_t i = 0; i < parameters.size(); ++i) fresh->parameters.try_emplace(parameters[i].full_name(), i);
  lookup = std::move(fresh);
}

const Module* ModuleTree::find(std::string_view module) const {
  if (lookup) {
    const auto found = lookup->modules.find(std::string(module));
    return found == lookup->modules.end() ? nullptr : &modules[found->second];
  }
  const auto found = std::find_if(modules.begin(), modules.end(), [&](const Module& m) { return m.name == module; });
  return found == modules.end() ? nullptr : &*found;
}

const Parameter* ModuleTree::find_parameter(std::string_view full_name) const {
  if (lookup) {
    const auto found = lookup->parameters.find(std::string(full_name));
    return found == lookup->parameters.end() ? nullptr : &parameters[found->second];
  }
  const auto found = std::find_if(parameters.begin(), parameters.end(),
                                  [&](const Parameter& p) { return p.full_name() == full_name; });
  return found == parameters.end() ? nullptr : &*found;
}

// ---- Experts ----------------------------------------------------------------------------------------------------

std::string Experts::per_expert_module(std::int64_t expert, Projection projection) const {
  const auto& modules = form->per_expert;
  const auto found =
      std::find_if(modules.begin(), modules.end(), [&](const auto& m) { return m.projection == projection; });
  if (found == modules.end()) return {};
  const std::string& experts = v4_module.empty() ? v5_module : v4_module;
  return experts + "." + model::replace_all(form->expert_name, "{expert}", std::to_string(expert)) + "." + found->name;
}

std::string Experts::fused_module(Generation g, const ExpertsForm::Fused& parameter) const {
  return model::resolve_module(module(g), parameter.module);
}

std::vector<std::int64_t> Experts::fused_shape(const ExpertsForm::Fused& parameter) const {
  const auto lookup = [this](std::string_view name) -> std::optional<model::Value> {
    const std::int64_t known = name == "E" ? num_experts : name == "H" ? hidden : name == "I" ? intermediate : 0;
    if (known > 0) return model::Value(known);
    for (const auto& [other, value] : other_dims) {
      if (other == name) return model::Value(value);
    }
    return std::nullopt;
  };
  std::vector<std::int64_t> shape;
  for (const std::string& dim : parameter.dims) shape.push_back(model::evaluate_integer(dim, lookup).value_or(0));
  return shape;
}

// ---- Model ------------------------------------------------------------------------------------------------------

namespace {

// The experts of the layer that a path names; null: that layer has none.
const Experts* experts_of(const Model& model, const model::PlaceMatch& match) {
  if (!match.layer.plain) return nullptr;
  const auto& layers = model.index->layers[match.place->kind];
  const auto at = layers.find(match.layer.value);
  return at == layers.end() ? nullptr : &model.experts[at->second];
}

bool is_past_last(const Model& model, const Experts& experts, std::int64_t expert) {
  return experts.num_experts > 0 && !model.num_experts_assumed && expert >= experts.num_experts;
}

}  // namespace

std::optional<Model::Located> Model::locate(std::string_view module_path) const {
  if (!index) return std::nullopt;
  const auto match = model::find_adapter_place(*index, module_path);
  const Experts* found = match ? experts_of(*this, *match) : nullptr;
  if (found == nullptr) return std::nullopt;
  const Index::Place& place = *match->place;
  if (!place.path.has_expert()) {
    return Located{found, -1, Projection::none, place.fused, place.fused_generation};
  }
  const auto here = [&] { return ErrorPlace{.tensor = std::string(module_path)}; };
  if (!match->expert.plain) {
    here().fail(ErrorCode::LO_EXPERT, {.problem = "an expert index is not a plain number",
                                       .expected = "0, 1, 2, ... without sign or leading zero"});
  }
  if (is_past_last(*this, *found, match->expert.value)) {
    here().fail(ErrorCode::LO_EXPERT, {.problem = "the model has no such expert",
                                       .expected = "an index below " + std::to_string(found->num_experts),
                                       .got = std::to_string(match->expert.value),
                                       .hint = "is this the base model of the adapter?"});
  }
  return Located{found, match->expert.value, place.projection, nullptr, std::nullopt};
}

std::string Model::rename(std::string_view module_path, Generation from, Generation to) const {
  if (!index || from == to) return std::string(module_path);
  const Index::RenameMap& map = to == Generation::v5 ? index->to_v5 : index->to_v4;
  if (map.empty()) return std::string(module_path);
  // The longest start of the path that has a rule decides.
  for (std::string_view start = module_path; !start.empty(); start = model::parent(start)) {
    const PathKey key = path_key(start);
    const auto rule = map.find(key.key);
    if (rule == map.end()) continue;
    const auto match = rule->second.first.match(key.numbers);
    if (!match || !match->layer.plain) continue;
    return rule->second.second.fill(match->layer.value) + std::string(module_path.substr(start.size()));
  }
  return std::string(module_path);
}

std::optional<ModuleKind> Model::kind(Generation g, std::string_view module_path) const {
  if (tree(g)) {
    if (const Module* module = tree(g)->find(module_path)) return module->kind;
  }
  if (!index) return std::nullopt;
  if (const auto match = find_place(index->places, module_path)) {
    return match->place->path.has_expert() ? ModuleKind::linear : ModuleKind::other;
  }
  if (const auto* known = index->find_known(g, module_path)) return known->kind;
  if (model::is_embedding_name(module_path)) return ModuleKind::embedding;
  return std::nullopt;
}

namespace {

// ".layers.7." of a model whose last layer is 1. False where the tree has no layers under that name.
bool is_past_last_layer(const ModuleTree& tree, std::string_view module_path) {
  constexpr std::string_view kLayers = "layers.";
  const auto at = module_path.find(kLayers);
  if (at == std::string_view::npos) return false;
  const std::string_view prefix = module_path.substr(0, at + kLayers.size());
  const auto number = [&](std::string_view name) {
    std::int64_t value = -1;
    const std::string_view rest = name.substr(prefix.size());
    std::from_chars(rest.data(), rest.data() + rest.size(), value);
    return value;
  };
  std::int64_t last = -1;
  for (const Module& module : tree.modules) {
    if (module.name.starts_with(prefix)) last = std::max(last, number(module.name));
  }
  return last >= 0 && number(module_path) > last;
}

}  // namespace

std::optional<bool> Model::has(Generation g, std::string_view module_path) const {
  const auto& known_tree = tree(g);
  if (!known_tree) return std::nullopt;
  if (known_tree->find(module_path) != nullptr) return true;
  for (const std::string& other : model::other_names(*this, module_path)) {
    if (known_tree->find(other) != nullptr) return true;
  }
  if (known_tree->complete) return false;
  // A config alone says for certain how many layers there are, and how many experts.
  if (is_past_last_layer(*known_tree, module_path)) return false;
  const auto match = index ? find_place(index->places, module_path) : std::nullopt;
  if (!match) return std::nullopt;
  const Experts* found = experts_of(*this, *match);
  if (found == nullptr || !match->expert.plain || is_past_last(*this, *found, match->expert.value)) return false;
  return std::nullopt;
}

// ---- describe() -------------------------------------------------------------------------------------------------

namespace {

namespace fs = std::filesystem;

// Whether the folder has weights of a model. An adapter may lie beside the config.json of its base, and its weights are
// not those of the base. Shards without an index do not count; the config.json describes such a folder, with a note.
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

Model from_tree_file(const std::shared_ptr<const model::Table>& table, const std::string& text,
                     const DescribeOptions& options) {
  const model::OrderedJson json = model::parse_ordered_object(text, options.base);
  const auto type = json.find("model_type");
  if (type == json.end() || !type->is_string()) {
    at(options.base, "model_type").fail(ErrorCode::MD_FORM, {.problem = "a module tree without a model type"});
  }
  model::Draft draft = model::draft_for_base(table, type->get<std::string>(), options);
  const auto config = json.find("config");
  const bool has_config = config != json.end() && config->is_object();
  model::Json facts = has_config ? model::Json::parse(config->dump()) : model::Json::object();
  facts["model_type"] = *type;
  draft.facts = model::ConfigFacts(std::move(facts), options.base);
  model::use_shown_tree(draft, model::tree_from_file(json, options.base, *draft.index), true);
  draft.model.source = "module tree " + options.base;
  model::finish(draft, options);
  return std::move(draft.model);
}

Model from_file(const std::shared_ptr<const model::Table>& table, const DescribeOptions& options) {
  const std::string text = model::read_text(options.base);
  model::Json json = model::parse_object(text, options.base);
  if (json.contains("weights") && json.contains("parameters")) return from_tree_file(table, text, options);
  return model::model_from_config(table, {std::move(json), options.base}, options);
}

Model from_folder(const std::shared_ptr<const model::Table>& table, const DescribeOptions& options) {
  const std::string config = (fs::path(options.base) / "config.json").string();
  std::error_code status;
  if (!fs::exists(config, status)) {
    at(options.base).fail(ErrorCode::MD_FORM, {.problem = "the model folder has no config.json"});
  }
  model::ConfigFacts facts(model::read_object(config), config);
  if (has_checkpoint(options.base)) return model::model_from_checkpoint(table, std::move(facts), options);
  Model model = model::model_from_config(table, std::move(facts), options);
  if (std::string note = note_on_unused_weights(options.base); !note.empty()) model.notes.push_back(std::move(note));
  return model;
}

}  // namespace

Model describe(const DescribeOptions& options) {
  const auto table = model::load_table(options.families_file);
  if (!options.base.empty()) {
    std::error_code status;
    if (fs::is_directory(options.base, status)) return from_folder(table, options);
    return from_file(table, options);
  }
  if (!options.family.empty()) return model::model_from_family(table, options);
  Model result = model::model_from_names(table, options);
  result.source = "names alone";
  return result;
}

}  // namespace peft
