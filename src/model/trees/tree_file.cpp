#include "model/trees/tree_file.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <unordered_map>

#include "model/config_json/config_facts.h"
#include "model/path.h"
#include "model/trees/build_tree.h"
#include "peft/error.h"

namespace peft::model {
namespace {

constexpr const char* kTree = "a module tree as golden/config/models has them";

std::vector<std::int64_t> shape_of(const OrderedJson& json, const ErrorPlace& here) {
  if (!json.is_array()) here.fail(ErrorCode::MD_FORM, {.problem = "a shape is not a list", .expected = kTree});
  std::vector<std::int64_t> shape;
  for (const auto& dim : json) {
    if (!dim.is_number_integer() || dim.get<std::int64_t>() < 0)
      here.fail(ErrorCode::MD_FORM, {.problem = "a dimension is not an unsigned integer", .expected = kTree});
    shape.push_back(dim.get<std::int64_t>());
  }
  return shape;
}

// "….experts.{0..11}.w1" -> "….experts.", 0, 11, ".w1"
struct Range {
  std::string before, after;
  std::int64_t first = 0, last = 0;
};
std::optional<Range> find_range(const std::string& name, const std::string& file) {
  const std::size_t open = name.find('{'), close = name.find('}');
  if (open == std::string::npos || close == std::string::npos || close < open) return std::nullopt;
  Range range{name.substr(0, open), name.substr(close + 1)};
  const char* const end = name.data() + close;
  const auto first = std::from_chars(name.data() + open + 1, end, range.first);
  const bool dots = first.ec == std::errc() && end - first.ptr > 2 && first.ptr[0] == '.' && first.ptr[1] == '.';
  if (!dots) at(file, name).fail(ErrorCode::MD_FORM, {.problem = "a range is not {first..last}", .expected = kTree});
  const auto last = std::from_chars(first.ptr + 2, end, range.last);
  const bool sane = last.ec == std::errc() && last.ptr == end && range.first >= 0 && range.first <= range.last;
  if (!sane || range.last >= kMaxExperts)
    at(file, name).fail(ErrorCode::MD_FORM, {.problem = "a range is not {first..last}", .expected = kTree});
  return range;
}

ModuleKind kind_of(const std::string& class_name, const std::string& name, const Model::Index& index) {
  if (class_name == "Linear") return ModuleKind::linear;
  if (class_name == "Conv1D") return ModuleKind::conv1d;
  if (class_name == "Embedding") return ModuleKind::embedding;
  if (class_name == "Conv1d" || class_name == "Conv2d" || class_name == "Conv3d") return ModuleKind::conv;
  for (const Generation g : {Generation::v5, Generation::v4}) {  // a subclass of Linear: PhimoeTopKRouter, FalconLinear
    if (const auto* known = index.find_known(g, name)) return known->kind;
  }
  return ModuleKind::other;
}

class TreeFileReader {
 public:
  TreeFileReader(const std::string& file, const Model::Index& index) : file_(file), index_(index) {}

  ModuleTree read(const OrderedJson& json) {
    const auto weights = json.find("weights");
    if (weights == json.end() || !weights->is_object())
      at(file_, "weights").fail(ErrorCode::MD_FORM, {.problem = "is not an object", .expected = kTree});
    for (auto row = weights->begin(); row != weights->end();) row = add_weights(row, weights->end());
    if (const auto parameters = json.find("parameters"); parameters != json.end()) {
      if (!parameters->is_object())
        at(file_, "parameters").fail(ErrorCode::MD_FORM, {.problem = "is not an object", .expected = kTree});
      for (const auto& [name, shape] : parameters->items()) add_parameter(name, shape);
    }
    insert_owners();
    return std::move(tree_);
  }

 private:
  using Row = OrderedJson::const_iterator;

  Module module_of(const std::string& name, const OrderedJson& row) const {
    if (!row.is_array() || row.size() < 2 || !row[0].is_string())
      at(file_, name).fail(ErrorCode::MD_FORM, {.problem = "a module is not [class, shape]", .expected = kTree});
    Module module{name, ModuleKind::other, row[0].get<std::string>(), shape_of(row[1], at(file_, name))};
    return module;
  }

  void add(Module module) {
    if (tree_.modules.size() >= static_cast<std::size_t>(kMaxModules))
      at(file_, module.name).fail(ErrorCode::MD_FORM, {.problem = "the tree has too many modules", .expected = kTree});
    module.kind = kind_of(module.class_name, module.name, index_);
    append_module(tree_, std::move(module));
  }

  // One row, or a run of rows over the same range.
  Row add_weights(Row row, Row end) {
    const auto range = find_range(row.key(), file_);
    if (!range) {
      add(module_of(row.key(), row.value()));
      return std::next(row);
    }
    std::vector<std::pair<std::string, Module>> group;  // what follows the number, the module
    while (row != end) {
      const auto next = find_range(row.key(), file_);
      if (!next || next->before != range->before || next->first != range->first || next->last != range->last) break;
      group.emplace_back(next->after, module_of(row.key(), row.value()));
      ++row;
    }
    for (std::int64_t number = range->first; number <= range->last; ++number) {
      for (const auto& [after, module] : group) {
        Module copy = module;
        copy.name = range->before + std::to_string(number) + after;
        add(std::move(copy));
      }
    }
    return row;
  }

  void add_parameter(const std::string& name, const OrderedJson& shape) {
    if (parent(name).empty())
      at(file_, name).fail(ErrorCode::MD_FORM, {.problem = "a parameter without a module", .expected = kTree});
    tree_.parameters.push_back({std::string(parent(name)), std::string(leaf(name)), shape_of(shape, at(file_, name))});
  }

  // Adds the modules that only own parameters, such as experts: they are not among the weights. They follow their
  // siblings.
  void insert_owners() {
    std::set<std::string> listed;
    for (const Module& module : tree_.modules) listed.insert(module.name);
    std::vector<Module> owners;
    std::unordered_map<std::string, std::size_t> last;  // parent of an owner -> its last module
    for (const Parameter& parameter : tree_.parameters) {
      if (!listed.insert(parameter.module).second) continue;
      owners.push_back({parameter.module, ModuleKind::other, class_of(parameter.module), {}});
      last.emplace(std::string(parent(parameter.module)), tree_.modules.size());
    }
    for (std::size_t i = 0; i < tree_.modules.size(); ++i) {
      for (std::string_view up = parent(tree_.modules[i].name); !up.empty(); up = parent(up)) {
        const auto found = last.find(std::string(up));
        if (found != last.end()) found->second = i + 1;
      }
    }
    std::stable_sort(owners.begin(), owners.end(), [&](const Module& a, const Module& b) {
      return last.at(std::string(parent(a.name))) < last.at(std::string(parent(b.name)));
    });
    std::vector<Module> merged;
    std::size_t next = 0;
    for (std::size_t i = 0; i <= tree_.modules.size(); ++i) {
      while (next < owners.size() && last.at(std::string(parent(owners[next].name))) == i)
        merged.push_back(owners[next++]);
      if (i < tree_.modules.size()) merged.push_back(std::move(tree_.modules[i]));
    }
    tree_.modules = std::move(merged);
  }

  std::string class_of(const std::string& module) const {
    const auto match = find_place(index_.places, module);
    if (!match || !index_.family) return {};
    const Kind& kind = index_.family->kinds[match->place->kind];
    const auto& rows = match->place->spelling == Generation::v4 && !kind.v4.empty() ? kind.v4 : kind.v5;
    return rows.empty() ? std::string() : rows.front()->class_name;
  }

  const std::string& file_;
  const Model::Index& index_;
  ModuleTree tree_;
};

}  // namespace

ModuleTree tree_from_file(const OrderedJson& json, const std::string& file, const Model::Index& index) {
  return TreeFileReader(file, index).read(json);
}

}  // namespace peft::model
