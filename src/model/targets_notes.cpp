#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "model/path.h"
#include "model/target_resolver.h"
#include "pythonic/python_regex.h"

namespace peft::model {

// PEFT compares ends of names without a dot in between: "head" saves lm_head.
void TargetResolver::save_modules() {
  if (!after().modules_to_save) return;
  std::set<std::string> names;
  for (const std::string& saved : *after().modules_to_save) {
    for (const Visit& visit : visits_) {
      if (!visit.name.ends_with(saved)) continue;
      if (visit.module == nullptr && is_module_list(visit.name)) {
        refuse_target("TypeError", visit.name, "modules_to_save cannot hold a list of modules");
      }
      names.insert(visit.name);
    }
  }
  result_.modules_to_save.assign(names.begin(), names.end());
}

// A container whose children are numbers.
bool TargetResolver::is_module_list(const std::string& container) const {
  const auto child =
      std::find_if(visits_.begin(), visits_.end(), [&](const Visit& v) { return is_below(v.name, container); });
  return child != visits_.end() && std::isdigit(static_cast<unsigned char>(child->name[container.size() + 1]));
}

void TargetResolver::warn() {
  const auto* names = std::get_if<std::vector<std::string>>(&after().target_modules);
  for (const std::string& name : names ? *names : std::vector<std::string>{}) {
    if (!used_.contains(name)) result_.warnings.push_back("target_modules: \"" + name + "\" matches nothing");
  }
  for (const std::string& name : config_.target_parameters.value_or(std::vector<std::string>{})) {
    if (!used_.contains(name)) result_.warnings.push_back("target_parameters: \"" + name + "\" matches nothing");
  }
  const auto* excluded = std::get_if<std::vector<std::string>>(&config_.exclude_modules);
  const auto* pattern = std::get_if<std::string>(&config_.exclude_modules);
  const bool excludes = (excluded != nullptr && !excluded->empty()) || (pattern != nullptr && !pattern->empty());
  if (excludes && result_.excluded.empty()) result_.warnings.push_back("exclude_modules matches nothing");
  warn_patterns(config_.rank_pattern, "rank_pattern");
  warn_patterns(config_.alpha_pattern, "alpha_pattern");
}

// Patterns that match no target, and targets that several patterns with different values match: PEFT saves the
// patterns sorted, so another one wins once the file is read again.
void TargetResolver::warn_patterns(const PatternMap& patterns, const std::string& key) {
  std::map<std::string, std::string> winners;  // target -> pattern that decides
  std::set<std::string> traps;
  for (const auto& [pattern, number] : patterns) {
    const PythonRegex regex("^(.*\\.)?(" + pattern + ")$", key);
    bool matched = false;
    for (const Target& target : result_.targets) {
      if (!regex.matches(target.name)) continue;
      matched = true;
      const auto [winner, fresh] = winners.try_emplace(target.name, pattern);
      if (!fresh && pattern < winner->second) traps.insert("\"" + winner->second + "\" and \"" + pattern + "\"");
    }
    if (!matched) result_.warnings.push_back(key + ": \"" + pattern + "\" matches no target");
  }
  for (const std::string& trap : traps) {
    result_.warnings.push_back(key + ": " + trap +
                               " fit the same targets; the other one decides once the config was saved and read");
  }
}

}  // namespace peft::model
