#include "layout/suffixes.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace peft::layout {
namespace {

// The last `segments` dotted segments of a name; the whole name when it has no more.
std::string_view suffix(std::string_view name, int segments) {
  std::size_t at = name.size();
  for (int i = 0; i < segments; ++i) {
    if (at == 0) return name;
    at = name.rfind('.', at - 1);
    if (at == std::string_view::npos) return name;
  }
  return name.substr(at + 1);
}

}  // namespace

std::vector<std::string> shortest_suffixes(const std::vector<std::string_view>& wanted,
                                           const std::vector<std::string_view>& all) {
  const std::unordered_set<std::string_view> wanted_set(wanted.begin(), wanted.end());
  std::unordered_set<std::string> result;
  std::vector<std::string_view> open = wanted;
  for (int segments = 1; !open.empty(); ++segments) {
    std::unordered_map<std::string_view, bool> clean;
    for (const auto name : open) clean.emplace(suffix(name, segments), true);
    for (const auto name : all) {
      if (wanted_set.count(name) != 0) continue;
      if (const auto at = clean.find(suffix(name, segments)); at != clean.end()) at->second = false;
    }
    std::vector<std::string_view> rest;
    for (const auto name : open) {
      const auto tail = suffix(name, segments);
      if (clean[tail] || tail == name)
        result.emplace(tail);
      else
        rest.push_back(name);
    }
    open = std::move(rest);
  }
  std::vector<std::string> sorted(result.begin(), result.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

std::vector<NamedValue> shortest_patterns(const std::vector<NamedValue>& values, double otherwise) {
  std::vector<NamedValue> result;
  std::vector<const NamedValue*> open;
  for (const auto& value : values) open.push_back(&value);
  for (int segments = 1; !open.empty(); ++segments) {
    std::unordered_map<std::string_view, std::pair<double, bool>> uniform;
    for (const auto* value : open) {
      const auto [at, fresh] = uniform.emplace(suffix(value->name, segments), std::pair{value->value, true});
      if (!fresh && at->second.first != value->value) at->second.second = false;
    }
    std::vector<const NamedValue*> rest;
    std::unordered_set<std::string_view> taken;
    for (const auto* value : open) {
      const auto tail = suffix(value->name, segments);
      if (!uniform[tail].second && tail != value->name)
        rest.push_back(value);
      else if (value->value != otherwise && taken.insert(tail).second)
        result.push_back({tail, value->value});
    }
    open = std::move(rest);
  }
  std::sort(result.begin(), result.end(), [](const NamedValue& x, const NamedValue& y) { return x.name < y.name; });
  return result;
}

}  // namespace peft::layout
