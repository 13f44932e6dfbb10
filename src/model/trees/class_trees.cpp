#include "model/trees/class_trees.h"

#include <algorithm>
#include <cctype>
#include <mutex>
#include <tuple>

#include "model/config_json/config_facts.h"
#include "model/json_file.h"
#include "model/path.h"
#include "peft/error.h"

namespace peft::model {

extern const std::string_view kModuleTreesJson;  // data/module_trees.json, embedded by cmake/embed_tables.cmake

namespace {

constexpr std::int64_t kMaxList = 100'000;

// The name "Conv1d" tells the kind; a subclass is written "FalconLinear:linear".
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

// The object of one type, cut out of the text of the table. Most runs ask for one type, and parsing all of them takes
// longer than the rest of such a run. join.py begins the line of a type, and no other line, with one space and a name.
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

// Older composites have the keys of their text part at the top.
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
  // -1 and "auto" mean that the class computes the value.
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

// Takes the value of the first layer that states it. In the known classes all layers that state it have the same one.
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

// ---- Trees

namespace {

constexpr std::string_view kLetters = "ijk";

std::string slot(std::size_t depth) { return "{" + std::string(1, kLetters[depth]) + "}"; }

// The list that a row is in at this depth: "model.layers" of "model.layers.{i}.mlp"; "" for none.
std::string container_of(const std::string& path, std::size_t depth) {
  if (depth >= kLetters.size()) return {};
  const std::size_t at = path.find(slot(depth));
  return at == std::string::npos || at == 0 ? std::string() : path.substr(0, at - 1);
}

// Makes the modules of the rows, in registration order.
class TreeMaker {
 public:
  TreeMaker(const TreeRows& rows, const Json& config, const std::string& file)
      : rows_(rows), values_(config, rows.keys), file_(file) {}

  ModuleTree run() {
    add(rows_.rows.begin(), rows_.rows.end(), 0);
    tree_.input_embedding = rows_.input_embedding;
    tree_.output_embedding = rows_.output_embedding;
    tree_.build_lookup();
    return std::move(tree_);
  }

 private:
  using Row = std::vector<TreeRow>::const_iterator;

  // Rows of the same list are repeated together: all of layer 0, then all of layer 1.
  void add(Row begin, Row end, std::size_t depth) {
    while (begin != end) {
      const std::string container = container_of(begin->path, depth);
      if (container.empty()) {
        add_module(*begin++);
        continue;
      }
      const Row next =
          std::find_if(begin, end, [&](const TreeRow& row) { return container_of(row.path, depth) != container; });
      const std::int64_t count = count_of(container);
      for (std::int64_t number = 0; number < count; ++number) {
        numbers_.push_back(number);
        add(begin, next, depth + 1);
        numbers_.pop_back();
      }
      begin = next;
    }
  }

  std::int64_t count_of(const std::string& container) {
    const auto formula = rows_.counts.find(container);
    const auto count = formula == rows_.counts.end() ? std::nullopt : evaluate_integer(formula->second, lookup());
    if (!count) tree_.complete = false;
    check_count(count.value_or(0), kMaxExperts);
    return count.value_or(0);
  }

  Lookup lookup() const {
    return [this](std::string_view name) -> std::optional<Value> {
      const std::size_t letter = name.size() == 1 ? kLetters.find(name[0]) : std::string_view::npos;
      if (letter < numbers_.size()) {
        uses_number_ = true;
        return Value(numbers_[letter]);
      }
      auto value = values_(name);
      if (!value) unknown_ = true;
      return value;
    };
  }

  bool is_there(const TreeRow& row) {
    if (row.when.empty()) return true;
    const Lookup names = lookup();
    unknown_ = false;
    for (const std::string& condition : row.when) {
      if (evaluate_condition(condition, names).value_or(false)) return true;
    }
    if (unknown_) tree_.complete = false;
    return false;
  }

  void add_module(const TreeRow& row) {
    if (!is_there(row)) return;
    check_count(static_cast<std::int64_t>(tree_.modules.size()) + 1, kMaxModules);
    Module module{row.path, row.kind, row.class_name, {}};
    for (std::size_t depth = 0; depth < numbers_.size(); ++depth) {
      module.name = replace_all(std::move(module.name), slot(depth), std::to_string(numbers_[depth]));
    }
    for (const auto& [name, formulas] : row.parameters) {
      std::vector<std::int64_t> shape = shape_of(formulas);
      if (name == "weight") module.weight = shape;
      if (row.kind == ModuleKind::other) tree_.parameters.push_back({module.name, name, std::move(shape)});
    }
    tree_.modules.push_back(std::move(module));
  }

  // Evaluated once, unless it depends on the number of a layer or expert.
  std::optional<std::int64_t> size_of(const std::string& formula) {
    const auto known = sizes_.find(&formula);
    if (known != sizes_.end()) return known->second;
    uses_number_ = false;
    const auto size = evaluate_integer(formula, lookup());
    if (!uses_number_) sizes_.emplace(&formula, size);
    return size;
  }

  std::vector<std::int64_t> shape_of(const std::vector<std::string>& formulas) {
    std::vector<std::int64_t> shape;
    for (const std::string& formula : formulas) {
      const auto size = size_of(formula);
      if (!size || *size <= 0) {
        tree_.complete = false;
        return {};
      }
      shape.push_back(*size);
    }
    return shape;
  }

  void check_count(std::int64_t count, std::int64_t limit) const {
    if (count <= limit) return;
    at(file_).fail(ErrorCode::MD_FORM, {.problem = "more modules than any model has",
                                        .expected = "at most " + std::to_string(kMaxModules)});
  }

  const TreeRows& rows_;
  ConfigValues values_;
  const std::string& file_;
  std::vector<std::int64_t> numbers_;
  mutable bool unknown_ = false;  // a formula asked for a key that neither the config nor the table has
  mutable bool uses_number_ = false;
  std::map<const std::string*, std::optional<std::int64_t>> sizes_;  // by the formula in the row
  ModuleTree tree_;
};

}  // namespace

ModuleTree body_of(const ModuleTree& tree, const ClassBody& body) {
  const auto renamed = [&](const std::string& name) { return body.own + name.substr(body.prefix.size()); };
  ModuleTree result;
  for (Module module : tree.modules) {
    if (!module.name.starts_with(body.prefix)) continue;
    module.name = renamed(module.name);
    result.modules.push_back(std::move(module));
  }
  for (Parameter parameter : tree.parameters) {
    if (!parameter.module.starts_with(body.prefix)) continue;
    parameter.module = renamed(parameter.module);
    result.parameters.push_back(std::move(parameter));
  }
  if (tree.input_embedding.starts_with(body.prefix)) result.input_embedding = renamed(tree.input_embedding);
  result.build_lookup();
  return result;
}

ModuleTree tree_from_rows(const TreeRows& rows, const Json& config, const std::string& file) {
  return TreeMaker(rows, config, file).run();
}

}  // namespace peft::model
