#include "model/tree_rows.h"

#include <algorithm>

#include "model/builder.h"
#include "model/path.h"
#include "peft/error.h"

namespace peft::model {
namespace {

constexpr std::string_view kLetters = "ijk";

std::string slot(std::size_t depth) { return "{" + std::string(1, kLetters[depth]) + "}"; }

// The list a row stands in at this depth: "model.layers" of "model.layers.{i}.mlp"; "" where it stands in none.
std::string container_of(const std::string& path, std::size_t depth) {
  if (depth >= kLetters.size()) return {};
  const std::size_t at = path.find(slot(depth));
  return at == std::string::npos || at == 0 ? std::string() : path.substr(0, at - 1);
}

class Maker {
 public:
  Maker(const TreeRows& rows, const Json& config, const std::string& file)
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
    if (count.value_or(0) > kMaxExperts) too_many();
    return count.value_or(0);
  }

  Lookup lookup() const {
    return [this](std::string_view name) -> std::optional<Value> {
      const std::size_t letter = name.size() == 1 ? kLetters.find(name[0]) : std::string_view::npos;
      if (letter < numbers_.size()) return Value(numbers_[letter]);
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
    if (tree_.modules.size() >= static_cast<std::size_t>(kMaxModules)) too_many();
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

  std::vector<std::int64_t> shape_of(const std::vector<std::string>& formulas) {
    const Lookup names = lookup();
    std::vector<std::int64_t> shape;
    for (const std::string& formula : formulas) {
      const auto size = evaluate_integer(formula, names);
      if (!size || *size <= 0) {
        tree_.complete = false;
        return {};
      }
      shape.push_back(*size);
    }
    return shape;
  }

  [[noreturn]] void too_many() const {
    throw Error(ErrorCode::MD_FORM, {.file = file_,
                                     .problem = "more modules than any model has",
                                     .expected = "at most " + std::to_string(kMaxModules)});
  }

  const TreeRows& rows_;
  ConfigValues values_;
  const std::string& file_;
  std::vector<std::int64_t> numbers_;
  mutable bool unknown_ = false;  // a key was asked for that neither the config nor the table has
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
  return Maker(rows, config, file).run();
}

}  // namespace peft::model
