// Python's `re`, and the patterns that PEFT makes of the keys of rank_pattern and alpha_pattern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft {

// A regular expression of Python 3.11, matched by PCRE2. Throws CF_REGEX with Python's own message and position.
class PythonRegex {
 public:
  explicit PythonRegex(std::string_view pattern, std::string_view where = {});
  ~PythonRegex();
  PythonRegex(PythonRegex&&) noexcept;
  PythonRegex& operator=(PythonRegex&&) noexcept;

  // Byte spans of group 0, 1, ...; {-1, -1} for a group that took no part. nullopt: no match.
  using Groups = std::vector<std::pair<std::int64_t, std::int64_t>>;
  std::optional<Groups> fullmatch(std::string_view text) const;
  std::optional<Groups> match(std::string_view text) const;
  std::optional<Groups> search(std::string_view text) const;
  bool matches(std::string_view text) const;  // match, without groups; the fast one
  bool fullmatches(std::string_view text) const;
  const std::vector<std::pair<std::string, int>>& names() const;  // named groups
  const std::vector<std::string>& warnings() const;               // FutureWarning texts of Python

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace peft

namespace peft::pythonic {

constexpr std::size_t kMaxPatterns = 4096;  // real regular expressions in one config; names are not counted

// Whether the key has only letters, digits, "_" and ".". Such keys need no regular expression, and configs have
// thousands.
bool is_plain_name(std::string_view key);

std::string suffix_expression(std::string_view key);

// A key of rank_pattern or alpha_pattern. It matches a name that (.*\.)?(KEY)$ matches from its start.
class SuffixPattern {
 public:
  explicit SuffixPattern(std::string_view key);  // throws CF_REGEX
  bool matches(std::string_view name) const;

 private:
  std::string key_;
  std::optional<PythonRegex> regex_;
};

// The pattern of the key, compiled once in each thread and kept, because rank_for is called for every module of a
// model.
const SuffixPattern& suffix_pattern(std::string_view key);

}  // namespace peft::pythonic
