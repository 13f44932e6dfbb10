// Names of modules in the order of PEFT's walk, its default targets, and its minimisation of name lists.
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

// Fewer and shorter names that select the same modules of this model, by PEFT's algorithm. PEFT applies it to lists of
// at least kMinimiseFrom names.
inline constexpr std::size_t kMinimiseFrom = 20;
std::vector<std::string> minimise(const std::vector<std::string>& targets, const std::vector<Visit>& modules);

// PEFT's suffix rule (config::is_named_by) on a set: the name itself, or the longest of its ends behind a dot that the
// set has; "" for none.
std::string matching_end(const std::set<std::string, std::less<>>& ends, std::string_view name);

}  // namespace peft::model
