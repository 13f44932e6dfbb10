// What transformers 5 calls a tensor of a checkpoint, by the renamings of its loader.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/families/table.h"
#include "peft/config.h"
#include "pythonic/python_regex.h"

namespace peft::model {

class DiskNames {
 public:
  explicit DiskNames(const Family* family);  // null: a type without renamings
  // The name after all renamings, in their order; the name itself where none applies. A mark follows the name of a
  // tensor that is a part of a parameter, or that is stored otherwise: "#0" the first part, "#interleaved", "#turned"
  // for a transposed one.
  std::string to_v5(std::string name) const;
  // What other classes of the family call the tensor: with or without "language_model." after "model.".
  std::vector<std::string> other_prefixes(std::string_view name) const;
  // Whether the class of transformers drops the tensor without a word: multi-token prediction, a vision tower.
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

// Adds the rules of a family, from the rows of its conversions. With each conversion comes the part of the model that
// it is about.
void read_disk_names(Family& family, const std::vector<std::pair<std::string, Json>>& conversions);

}  // namespace peft::model
