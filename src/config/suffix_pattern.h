// A key of rank_pattern or alpha_pattern: matches a name that (.*\.)?(KEY)$ matches from its start.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "peft/config.h"

namespace peft::config {

constexpr std::size_t kMaxPatterns = 4096;  // real regular expressions in one config; names are not counted

// Only letters, digits, "_" and ".": needs no regular expression, and configs may have thousands of them.
bool is_plain_name(std::string_view key);

std::string suffix_expression(std::string_view key);

class SuffixPattern {
 public:
  explicit SuffixPattern(std::string_view key);  // throws CF_REGEX
  bool matches(std::string_view name) const;

 private:
  std::string key_;
  std::optional<PythonRegex> regex_;
};

// Compiled once per thread and kept: rank_for is asked for every module of a model.
const SuffixPattern& suffix_pattern(std::string_view key);

}  // namespace peft::config
