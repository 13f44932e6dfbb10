#include "model/tree_table.h"

#include <algorithm>
#include <cctype>
#include <mutex>
#include <tuple>

#include "model/json_file.h"
#include "model/path.h"

namespace peft::model {

extern const std::string_view kModuleTreesJson;  // data/module_trees.json, embedded by cmake/embed_families.cmake

namespace {

constexpr std::int64_t kMaxList = 100'000;

// "Conv1d" tells its kind; a subclass is written "FalconLinear:linear".
std::pair<std::string, ModuleKind> class_and_kind(const std::string& text) {
  const std::size_t colon = text.find(':');
  const std::string kind = colon == std::string::npos ? text : text.substr(colon + 1);
  const std::string name = text.substr(0, colon);
  if (kind == "Linear" || kind == "linear") return {name, ModuleKind::linear};
  if (kind == "Conv1D" || kind == "conv1d") return {name, ModuleKind::conv1d};
  if (kind == "Embedding" || kind == "embedding") return {name, ModuleKind::embedding};
  const bool conv = kind == "Conv1d" || kind == "Conv2d" || kind == "Conv3d" || kind == "conv";
  return {name, conv ? ModuleKind::conv : ModuleKind::other};
}

// [path, class, dimensions of "weight" or {parameter: dimensions}, conditions]
TreeRow read_row(const OrderedJson& json) {
  TreeRow row;
  row.path = json.at(0).get<std::string>();
  std::tie(row.class_name, row.kind) = class_and_kind(json.at(1).get<std::string>());
  const OrderedJson& sizes = json.at(2);
  if (sizes.is_array()) {
    row.parameters.emplace_back("weight", sizes.get<std::vector<std::string>>());
  } else {
    for (const auto& [name, dims] : sizes.items())
      row.parameters.emplace_back(name, dims.get<std::vector<std::string>>());
  }
  if (json.size() > 3) row.when = json.at(3).get<std::vector<std::string>>();
  return row;
}

std::shared_ptr<const ConfigKeys> read_keys(const OrderedJson& json) {
  auto keys = std::make_shared<ConfigKeys>();
  keys->defaults = Json::parse(json.at("defaults").dump());
  for (const auto& [path, names] : json.at("aliases").items())
    keys->aliases[path] = names.get<std::vector<std::string>>();
  for (const auto& [path, made] : json.at("derived").items()) {
    DerivedKey& key = keys->derived[path];
    if (!made.is_object()) {
      key.formula = made.is_string() ? made.get<std::string>() : made.dump();
      continue;
    }
    key.by_layer = made.value("by_layer", "");
    if (!key.by_layer.empty()) continue;
    key.length = made.at("length").get<std::string>();
    for (const auto& kind : made.at("values")) {
      key.kinds.emplace_back(Json::parse(kind.at(0).dump()), kind.at(1).get<std::vector<std::string>>());
    }
  }
  return keys;
}

using KeysList = std::vector<std::shared_ptr<const ConfigKeys>>;

std::shared_ptr<const TreeRows> read_rows(const OrderedJson& json, const KeysList& keys) {
  auto tree = std::make_shared<TreeRows>();
  tree->input_embedding = json.at("input").get<std::string>();
  tree->output_embedding = json.at("output").get<std::string>();
  tree->counts = json.at("counts").get<std::map<std::string, std::string, std::less<>>>();
  for (const auto& row : json.at("modules")) tree->rows.push_back(read_row(row));
  tree->keys = keys.at(json.at("keys").get<std::size_t>());
  return tree;
}

TypeTrees read_type(const OrderedJson& json) {
  TypeTrees type;
  KeysList keys;
  for (const auto& set : json.at("keys")) keys.push_back(read_keys(set));
  for (const auto& [name, generations] : json.at("classes").items()) {
    ClassTrees trees;
    trees.class_name = name;
    if (generations.contains("v5")) trees.v5 = read_rows(generations.at("v5"), keys);
    if (generations.contains("v4")) {
      const OrderedJson& v4 = generations.at("v4");
      trees.v4 = v4.is_string() ? trees.v5 : read_rows(v4, keys);  // "v5": the same
    }
    type.classes.push_back(std::move(trees));
  }
  if (!json.contains("bodies")) return type;
  for (const auto& [name, body] : json.at("bodies").items()) {
    type.bodies[name] = {body.at(0).get<std::string>(), body.at(1).get<std::string>(), body.at(2).get<std::string>()};
  }
  return type;
}

// The object of one type, cut out of the table's text: join.py begins each type, and no other line, with one space and
// its name. Most runs ask for one type, and parsing all of them takes longer than the rest of such a run.
std::string_view text_of(std::string_view model_type) {
  const auto is_plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-' || c == '.'; };
  if (model_type.empty() || !std::all_of(model_type.begin(), model_type.end(), is_plain)) return {};
  constexpr std::string_view kNext = "\n \"";
  const std::string line = std::string(kNext) + std::string(model_type) + "\": ";
  const std::size_t at = kModuleTreesJson.find(line);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = kModuleTreesJson.substr(at + line.size());
  const std::string_view text = rest.substr(0, std::min(rest.find(kNext), rest.rfind('}')));
  return text.substr(0, text.rfind('}') + 1);
}

bool has_text_section(const Json& config) {
  const auto found = config.find("text_config");
  return found != config.end() && found->is_object();
}

}  // namespace

const ClassTrees* TypeTrees::find(std::string_view class_name) const {
  const auto found =
      std::find_if(classes.begin(), classes.end(), [&](const ClassTrees& c) { return c.class_name == class_name; });
  return found == classes.end() ? nullptr : &*found;
}

const TypeTrees* find_trees(std::string_view model_type) {
  static std::map<std::string, TypeTrees, std::less<>> known;
  static std::mutex guard;
  const std::lock_guard lock(guard);
  const auto found = known.find(model_type);
  if (found != known.end()) return &found->second;
  const std::string_view text = text_of(model_type);
  if (text.empty()) return nullptr;
  return &known.emplace(model_type, read_type(OrderedJson::parse(text))).first->second;
}

std::optional<std::string> output_embedding_of(std::string_view model_type, std::string_view class_name) {
  const TypeTrees* type = find_trees(model_type);
  if (type == nullptr) return std::nullopt;
  const ClassTrees* trees = type->find(class_name);
  if (trees != nullptr && trees->v5) return trees->v5->output_embedding;
  return type->bodies.contains(class_name) ? std::optional<std::string>("") : std::nullopt;
}

ConfigValues::ConfigValues(const Json& config, std::shared_ptr<const ConfigKeys> keys)
    : config_(config), keys_(std::move(keys)) {}

// Older composites have the keys of their text at the top.
const Json* ConfigValues::find(std::string_view path) const {
  constexpr std::string_view kText = "text_config.";
  if (path.starts_with(kText) && !has_text_section(config_)) path.remove_prefix(kText.size());
  const Json* at = &config_;
  while (true) {
    const std::size_t end = std::min(path.find('.'), path.size());
    const auto found = at->find(path.substr(0, end));
    if (!at->is_object() || found == at->end()) return nullptr;
    at = &*found;
    if (end == path.size()) return at;
    path.remove_prefix(end + 1);
  }
}

std::optional<Value> ConfigValues::operator()(std::string_view path) const {
  const Json* value = find(path);
  if (const auto other = keys_->aliases.find(path); value == nullptr && other != keys_->aliases.end()) {
    for (const std::string& alias : other->second) value = value == nullptr ? find(alias) : value;
  }
  const auto derived = keys_->derived.find(path);
  const bool can_derive = derived != keys_->derived.end();
  // -1 and "auto" stand for what the class computes.
  const bool left_open = can_derive && value != nullptr && (*value == -1 || *value == "auto");
  const bool stated = value != nullptr && !value->is_null() && !left_open;
  if (stated) return to_value(*value);
  const auto standard = keys_->defaults.find(path);
  const bool has_default = value == nullptr && standard != keys_->defaults.end();
  if (can_derive) {
    const auto made = derive(derived->first, derived->second);
    if (made) return made;
    if (!has_default && derived->second.by_layer.empty()) return std::nullopt;
  }
  if (has_default) return to_value(*standard);
  return Value(std::monostate{});
}

// The first layer that states it: all that do have the same, in the classes that are known.
const Json* ConfigValues::find_by_layer(std::string_view path, const std::string& key) const {
  const std::size_t dot = path.rfind('.');
  const Json* layers =
      find(std::string(path.substr(0, dot == std::string_view::npos ? 0 : dot + 1)) + "per_layer_config");
  if (layers == nullptr || !layers->is_object()) return nullptr;
  for (const auto& [number, layer] : layers->items()) {
    if (layer.is_object() && layer.contains(key)) return &layer.at(key);
  }
  return nullptr;
}

std::optional<Value> ConfigValues::derive(const std::string& path, const DerivedKey& key) const {
  if (!key.by_layer.empty()) {
    const Json* value = find_by_layer(path, key.by_layer);
    return value != nullptr ? to_value(*value) : std::nullopt;
  }
  if (!key.formula.empty()) return evaluate(key.formula, *this);
  const auto made = made_.find(path);
  if (made != made_.end()) return to_value(made->second);
  const auto length = evaluate_integer(key.length, *this);
  if (!length || *length < 0 || *length > kMaxList) return std::nullopt;
  Json list = Json::array();
  for (std::int64_t i = 0; i < *length; ++i) {
    const Lookup names = [&](std::string_view name) { return name == "i" ? Value(i) : (*this)(name); };
    const auto kind = std::find_if(key.kinds.begin(), key.kinds.end(), [&](const auto& candidate) {
      const auto holds = [&](const std::string& condition) {
        return evaluate_condition(condition, names).value_or(false);
      };
      return candidate.second.empty() || std::any_of(candidate.second.begin(), candidate.second.end(), holds);
    });
    list.push_back(kind != key.kinds.end() ? kind->first : Json());
  }
  return to_value(made_.emplace(path, std::move(list)).first->second);
}

}  // namespace peft::model
