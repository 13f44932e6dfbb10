// Whether a config targets a module: PEFT's checks in PEFT's order.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"
#include "pythonic/python_regex.h"

namespace peft::model {

class TargetMatcher {
 public:
  // `version`: whose rule for the layer index holds.
  TargetMatcher(const AdapterConfig& config, const AdapterConfig::Version& version);

  enum class Answer { no, yes, excluded };
  struct Result {
    Answer answer = Answer::no;
    std::string pattern;  // the entry that matched
  };
  Result check(std::string_view name) const;

 private:
  bool is_excluded(std::string_view name) const;
  bool layer_is_wanted(std::string_view name) const;
  std::optional<std::int64_t> layer_index(std::string_view name) const;

  using Names = std::set<std::string, std::less<>>;
  bool first_number_;  // of a path is the layer (from 0.20.0); before, the last one
  bool no_modules_ = false;
  std::optional<PythonRegex> target_pattern_, exclude_pattern_;
  std::string target_text_;
  Names targets_, excludes_;
  std::vector<PythonRegex> saved_, layer_patterns_;
  std::optional<std::vector<std::int64_t>> layers_;
};

}  // namespace peft::model
