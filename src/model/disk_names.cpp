#include "model/disk_names.h"

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

// The part of the name before which a scoped rule does not look; nullopt: the rule is about another part.
std::optional<std::size_t> scope_length(std::string_view name, const std::string& scope) {
  if (scope.empty()) return 0;
  for (const std::string& start : {"model." + scope + ".", scope + "."}) {
    if (name.starts_with(start)) return start.size();
  }
  return std::nullopt;
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
      if (type != "WeightRenaming" || !step.at("from").is_string() || !step.at("to").is_string()) continue;
      family.name_rules.push_back({step.at("from").get<std::string>(), step.at("to").get<std::string>(), scope});
    }
  }
}

DiskNames::DiskNames(const Family* family) {
  if (family == nullptr) return;
  for (const NameRule& rule : family->name_rules) {
    rules_.push_back({PythonRegex(rule.pattern, family->model_type), rule.replacement, rule.scope});
  }
  prefixes_ = family->optional_prefixes;
  for (const std::string& pattern : family->ignored) ignored_.emplace_back(pattern, family->model_type);
}

std::string DiskNames::to_v5(std::string name) const {
  for (const Rule& rule : rules_) {
    const auto behind = scope_length(name, rule.scope);
    if (!behind) continue;
    const std::string rest = name.substr(*behind);
    const auto groups = rule.pattern.search(rest);
    if (!groups) continue;
    const auto [begin, end] = groups->front();
    name = name.substr(0, *behind) + rest.substr(0, static_cast<std::size_t>(begin)) +
           expanded(rule.replacement, rest, *groups) + rest.substr(static_cast<std::size_t>(end));
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
