// Python 3.11's grammar for regular expressions, with its error messages, positions and warnings.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "pythonic/regex/source.h"
#include "pythonic/regex/tree.h"

namespace peft::pythonic {

class RegexParser {
 public:
  // Throws RegexError where re.compile raises; `warnings` also gets what came before an error.
  RegexParser(std::u32string pattern, std::vector<RegexWarning>* warnings)
      : source_(std::move(pattern)), warnings_(warnings) {}
  RegexTree parse();

 private:
  // An escape: a character, a set (\d), or a position (\b).
  enum class Where { pattern, set };

  RegexSequence parse_alternatives(bool verbose, int depth);
  RegexSequence parse_sequence(bool verbose, int depth, bool first);
  bool skip_verbose(std::u32string_view token);
  void parse_repeat(RegexSequence& sequence, char32_t quantifier);
  bool parse_counts(std::size_t here, std::uint64_t& low, std::uint64_t& high);

  // what starts with "("
  void parse_group(RegexSequence& sequence, int depth, bool first, bool& verbose);
  bool parse_extension(RegexSequence& sequence, int depth, bool first, bool& verbose, RegexNode& group,
                       std::u32string& name);
  bool parse_python_extension(RegexSequence& sequence, std::u32string& name);
  void skip_comment(std::size_t start);
  RegexNode parse_look(char32_t kind, std::size_t start, bool verbose, int depth);
  RegexNode parse_conditional(std::size_t start, bool verbose, int depth);
  int conditional_group();
  int open_group(const std::u32string& name);
  void check_group_name(const std::u32string& name);
  int named_group(const std::u32string& name) const;
  void check_lookbehind(int group) const;
  void expect_close(std::size_t start);
  bool is_closed(int group) const { return group < static_cast<int>(closed_.size()) && closed_[group].has_value(); }
  RegexNode reference_node(int group) const;

  // (?i), (?i:...), (?-i:...)
  bool parse_flags(std::u32string_view first, unsigned& on, unsigned& off);
  std::u32string_view parse_flags_on(std::u32string_view token, unsigned& on);
  unsigned parse_flags_off();

  // escapes and [...]
  RegexNode parse_escape(std::u32string_view escape, Where where);
  RegexError bad_escape(const char* what, std::size_t from) const;
  char32_t parse_hex(std::size_t from, int digits);
  char32_t octal_character(std::size_t from) const;
  char32_t parse_named_character();
  RegexNode parse_number_escape(std::size_t from, char32_t first);
  RegexNode parse_set();
  SetItem parse_set_element(std::u32string_view token);
  void warn_set_operator(std::u32string_view token);
  void warn_at(const char* what, std::size_t position);

  void check_compiled(const RegexSequence& sequence) const;
  void warn(std::string category, std::string text) { warnings_->push_back({std::move(category), std::move(text)}); }

  RegexSource source_;
  std::vector<RegexWarning>* warnings_;
  RegexTree tree_;
  std::vector<std::optional<RegexWidth>> closed_{std::nullopt};  // by group number; empty while the group is open
  std::map<std::u32string, int> numbers_;                        // of named groups
  int lookbehind_groups_ = -1;                                   // groups known where the outermost look-behind began
  std::vector<std::pair<int, std::size_t>> conditions_;          // groups that conditionals ask for, and where
};

constexpr int kMaxRegexDepth = 400;  // Python's own limit is its recursion limit: between 400 and 500

}  // namespace peft::pythonic
