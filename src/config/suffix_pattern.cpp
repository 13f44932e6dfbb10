#include "config/suffix_pattern.h"

#include <algorithm>
#include <unordered_map>

namespace peft::config {
namespace {

constexpr std::size_t kMaxCached = 4 * kMaxPatterns;

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
}

// Equal, where "." of the key stands for any character.
bool equal(std::string_view key, std::string_view text) {
  return std::equal(key.begin(), key.end(), text.begin(), text.end(),
                    [](char k, char c) { return k == c || k == '.'; });
}

struct Hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace

bool is_plain_name(std::string_view key) { return std::all_of(key.begin(), key.end(), is_name_character); }

std::string suffix_expression(std::string_view key) { return "(.*\\.)?(" + std::string(key) + ")$"; }

SuffixPattern::SuffixPattern(std::string_view key) : key_(key) {
  if (!is_plain_name(key)) regex_.emplace(suffix_expression(key));
}

bool SuffixPattern::matches(std::string_view name) const {
  if (regex_) return regex_->matches(name);
  const bool ordinary = std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
  if (!ordinary) return PythonRegex(suffix_expression(key_)).matches(name);
  if (name.size() < key_.size()) return false;
  const std::size_t before = name.size() - key_.size();
  return (before == 0 || name[before - 1] == '.') && equal(key_, name.substr(before));
}

const SuffixPattern& suffix_pattern(std::string_view key) {
  thread_local std::unordered_map<std::string, SuffixPattern, Hash, std::equal_to<>> cache;
  if (const auto found = cache.find(key); found != cache.end()) return found->second;
  if (cache.size() >= kMaxCached) cache.clear();
  return cache.emplace(std::string(key), SuffixPattern(key)).first->second;
}

}  // namespace peft::config
