// Short names for lists of modules: the shortest dotted suffix that means exactly the wanted ones.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace peft::layout {

// For each of `wanted` (a subset of `all`) the shortest dotted suffix that no name of `all` outside `wanted` has;
// names that share one are listed once. Sorted. PEFT's rule for lists: a name is a target when it is an entry or ends
// with "." + entry; an entry that equals a whole name also stands for that name.
std::vector<std::string> shortest_suffixes(const std::vector<std::string_view>& wanted,
                                           const std::vector<std::string_view>& all);

// name -> value, as few patterns as possible: the shortest suffix whose names all have the same value. Names with the
// value `otherwise` need none. Two patterns never match one name, so their order does not matter.
struct NamedValue {
  std::string_view name;
  double value;
};
std::vector<NamedValue> shortest_patterns(const std::vector<NamedValue>& values, double otherwise);

}  // namespace peft::layout
