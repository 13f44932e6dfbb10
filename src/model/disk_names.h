// What a tensor of a checkpoint is called in transformers 5: the renamings that its loader applies, as data.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/families.h"
#include "peft/config.h"
#include "pythonic/python_regex.h"

namespace peft::model {

class DiskNames {
 public:
  explicit DiskNames(const Family* family);  // null: a type without renamings
  // The name after all renamings, in their order; the name itself where none applies. Of a tensor that is only a part
  // of a parameter, or lies otherwise, with a mark behind it: "#0" the first of several, "#interleaved", "#turned".
  std::string to_v5(std::string name) const;
  // The same tensor as the other classes of the family name it: with or without "language_model." after "model.".
  std::vector<std::string> other_prefixes(std::string_view name) const;
  // Whether the real class says nothing about a tensor it has no place for: multi-token prediction, a vision tower.
  bool is_ignored(const std::string& name) const;

 private:
  struct Rule {
    PythonRegex pattern;
    std::string replacement, scope;
  };
  static bool apply(const Rule& rule, std::string& name);
  std::vector<Rule> rules_, parts_;
  std::vector<std::pair<std::string, std::string>> prefixes_;
  std::vector<PythonRegex> ignored_;
};

// Takes a family's renamings from the rows of its conversions, each with the part of the model it is about.
void read_disk_names(Family& family, const std::vector<std::pair<std::string, Json>>& conversions);

}  // namespace peft::model
