#include "model/targets/matcher.h"

#include <algorithm>
#include <charconv>

#include "model/path.h"
#include "model/targets/names.h"

namespace peft::model {
namespace {

constexpr AdapterConfig::Version kFirstNumberSince{0, 20, 0};

std::optional<std::int64_t> to_number(std::string_view digits) {
  std::int64_t value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return result.ec == std::errc() ? std::optional(value) : std::nullopt;
}

}  // namespace

TargetMatcher::TargetMatcher(const AdapterConfig& config, const AdapterConfig::Version& version)
    : first_number_(version >= kFirstNumberSince) {
  if (const auto* text = std::get_if<std::string>(&config.target_modules)) {
    target_text_ = *text;
    target_pattern_.emplace(*text, "target_modules");
  } else if (const auto* names = std::get_if<std::vector<std::string>>(&config.target_modules)) {
    targets_.insert(names->begin(), names->end());
  } else {
    no_modules_ = true;
  }
  if (const auto* text = std::get_if<std::string>(&config.exclude_modules)) {
    exclude_pattern_.emplace(*text, "exclude_modules");
  } else if (const auto* names = std::get_if<std::vector<std::string>>(&config.exclude_modules)) {
    excludes_.insert(names->begin(), names->end());
  }
  if (config.modules_to_save) {
    // PEFT puts the name into the pattern as it is.
    for (const std::string& name : *config.modules_to_save)
      saved_.emplace_back("(^|.*\\.)" + name + "($|\\..*)", "modules_to_save");
  }
  if (config.layers_to_transform && !config.layers_to_transform->empty()) layers_ = config.layers_to_transform;
  if (config.layers_pattern) {
    const std::string any = first_number_ ? ".*?" : ".*";
    for (const std::string& name : *config.layers_pattern) {
      layer_patterns_.emplace_back(any + "\\." + name + "\\.(\\d+)\\.", "layers_pattern");
    }
  }
}

TargetMatcher::Result TargetMatcher::check(std::string_view name) const {
  if (is_excluded(name)) return {Answer::excluded, {}};
  if (no_modules_) return {};
  if (target_pattern_) return target_pattern_->fullmatches(name) ? Result{Answer::yes, target_text_} : Result{};
  if (targets_.contains(name)) return {Answer::yes, std::string(name)};  // whatever layers_to_transform says
  std::string end = matching_end(targets_, name);
  if (end.empty() || (layers_ && !layer_is_wanted(name))) return {};
  return {Answer::yes, std::move(end)};
}

bool TargetMatcher::is_excluded(std::string_view name) const {
  if (exclude_pattern_ && exclude_pattern_->fullmatches(name)) return true;
  if (!excludes_.empty() && !matching_end(excludes_, name).empty()) return true;
  return std::any_of(saved_.begin(), saved_.end(), [&](const PythonRegex& saved) { return saved.matches(name); });
}

bool TargetMatcher::layer_is_wanted(std::string_view name) const {
  const auto index = layer_index(name);
  return index && std::find(layers_->begin(), layers_->end(), *index) != layers_->end();
}

std::optional<std::int64_t> TargetMatcher::layer_index(std::string_view name) const {
  for (const PythonRegex& pattern : layer_patterns_) {
    const auto groups = pattern.match(name);
    if (!groups || groups->size() < 2) continue;
    const auto [begin, end] = groups->back();  // the pattern may have groups of its own in front
    return to_number(name.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
  }
  if (!layer_patterns_.empty()) return std::nullopt;
  // A number with two segments before it and something behind it.
  std::optional<std::int64_t> found;
  std::size_t start = 0;
  for (int segment = 0; start < name.size(); ++segment) {
    const std::size_t end = name.find('.', start);
    if (end == std::string_view::npos) break;
    const std::string_view text = name.substr(start, end - start);
    if (segment >= 2 && all_digits(text)) {
      found = to_number(text);
      if (first_number_) break;
    }
    start = end + 1;
  }
  return found;
}

}  // namespace peft::model
