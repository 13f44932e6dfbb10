#include "model/families/disk_names.h"

namespace peft::model {
namespace {

// "\1" is a group, "\." a dot.
std::string expanded(std::string_view replacement, std::string_view text, const PythonRegex::Groups& groups) {
  std::string result;
  for (std::size_t i = 0; i < replacement.size(); ++i) {
    if (replacement[i] != '\\' || i + 1 == replacement.size()) {
      result += replacement[i];
      continue;
    }
    const char next = replacement[++i];
    const auto group = static_cast<std::size_t>(next - '0');
    if (next < '0' || next > '9') {
      result += next;
    } else if (group < groups.size() && groups[group].first >= 0) {
      const auto [begin, end] = groups[group];
      result += text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    }
  }
  return result;
}

// The length of the start of the name that a rule does not look at; nullopt: the rule is about another part of the
// model.
std::optional<std::size_t> scope_length(std::string_view name, const std::string& scope) {
  constexpr std::string_view kBase = "model.";
  if (scope.empty()) return 0;
  if (scope == ".") return name.starts_with(kBase) ? kBase.size() : 0;
  for (const std::string& start : {"model." + scope + ".", scope + "."}) {
    if (name.starts_with(start)) return start.size();
  }
  return std::nullopt;
}

// The mark of a source of a conversion with one operation: one matrix of several, interleaved rows, a transpose. "" for
// other operations, whose result is no view of the tensor.
std::string mark_of(const Json& step, std::size_t source, std::size_t sources) {
  const Json& operations = step.at("ops");
  if (operations.size() != 1) return {};
  const std::string operation = operations[0].at(0).get<std::string>();
  if (operation == "Concatenate" && sources > 1) return "#" + std::to_string(source);
  if (sources > 1) return {};
  if (operation == "Interleave" && operations[0].at(1).at("dim") == 1) return "#interleaved";
  return operation == "Transpose" ? "#turned" : std::string();
}

void read_parts(Family& family, const std::string& scope, const Json& step) {
  if (!step.contains("ops") || !step.at("to").is_string()) return;
  const Json from = step.at("from").is_array() ? step.at("from") : Json::array({step.at("from")});
  for (std::size_t i = 0; i < from.size(); ++i) {
    const std::string pattern = from[i].get<std::string>();
    const std::string mark = mark_of(step, i, from.size());
    const bool stacks = pattern.find('*') != std::string::npos || from[i] == step.at("to");
    if (!mark.empty() && !stacks)
      family.part_rules.push_back({pattern + "$", step.at("to").get<std::string>() + mark, scope});
  }
}

}  // namespace

void read_disk_names(Family& family, const std::vector<std::pair<std::string, Json>>& conversions) {
  for (const auto& [scope, steps] : conversions) {
    for (const Json& step : steps) {
      const std::string type = step.at("type").get<std::string>();
      if (type == "PrefixChange" && step.contains("model_prefix") && step.contains("prefix_to_remove")) {
        family.optional_prefixes.emplace_back(step.at("model_prefix").get<std::string>() + ".",
                                              step.at("prefix_to_remove").get<std::string>() + ".");
      }
      if (type == "WeightConverter") read_parts(family, scope, step);
      if (type != "WeightRenaming" || !step.at("from").is_string() || !step.at("to").is_string()) continue;
      family.name_rules.push_back({step.at("from").get<std::string>(), step.at("to").get<std::string>(), scope});
    }
  }
}

DiskNames::DiskNames(const Family* family) {
  if (family == nullptr) return;
  const auto compile = [&](const std::vector<NameRule>& from, std::vector<Rule>& to) {
    for (const NameRule& rule : from) {
      to.push_back({PythonRegex(rule.pattern, family->model_type), rule.replacement, rule.scope});
    }
  };
  compile(family->name_rules, rules_);
  compile(family->part_rules, parts_);
  prefixes_ = family->optional_prefixes;
  for (const std::string& pattern : family->ignored) ignored_.emplace_back(pattern, family->model_type);
}

bool DiskNames::apply(const Rule& rule, std::string& name) {
  const auto behind = scope_length(name, rule.scope);
  if (!behind) return false;
  const std::string rest = name.substr(*behind);
  const auto groups = rule.pattern.search(rest);
  if (!groups) return false;
  const auto [begin, end] = groups->front();
  name = name.substr(0, *behind) + rest.substr(0, static_cast<std::size_t>(begin)) +
         expanded(rule.replacement, rest, *groups) + rest.substr(static_cast<std::size_t>(end));
  return true;
}

std::string DiskNames::to_v5(std::string name) const {
  for (const Rule& rule : rules_) apply(rule, name);
  for (const Rule& rule : parts_) {
    if (apply(rule, name)) break;
  }
  return name;
}

std::vector<std::string> DiskNames::other_prefixes(std::string_view name) const {
  std::vector<std::string> names;
  for (const auto& [model, part] : prefixes_) {
    if (!name.starts_with(model)) continue;
    const std::string_view rest = name.substr(model.size());
    names.push_back(rest.starts_with(part) ? model + std::string(rest.substr(part.size()))
                                           : model + part + std::string(rest));
  }
  return names;
}

bool DiskNames::is_ignored(const std::string& name) const {
  for (const PythonRegex& pattern : ignored_) {
    if (pattern.search(name)) return true;
  }
  return false;
}

}  // namespace peft::model
