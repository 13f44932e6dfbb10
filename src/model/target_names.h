// Names of modules as PEFT walks them, and the two things it does with name lists: defaults and minimisation.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"
#include "peft/model.h"

namespace peft::model {

// One module of the walk. Containers (a layer, a block) have names but no weight of their own.
struct Visit {
  std::string name;
  const Module* module = nullptr;  // null: a container
};
// Every module below the root: containers before what they contain, modules in registration order.
std::vector<Visit> walk(const ModuleTree& tree);

// PEFT's default targets of a model type; monostate: none.
NamesOrPattern default_targets(std::string_view model_type);

// Fewer and shorter names that select the same modules of this model. PEFT's algorithm, from 20 names on.
inline constexpr std::size_t kMinimiseFrom = 20;
std::vector<std::string> minimise(const std::vector<std::string>& targets, const std::vector<Visit>& modules);

// Whether the name, or one of the ends of it that start behind a dot, is in the set; which one, or "".
std::string matching_end(const std::set<std::string, std::less<>>& ends, std::string_view name);

}  // namespace peft::model
