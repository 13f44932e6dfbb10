// Adapters that are opened together.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "peft/verbs.h"

namespace peft::verbs {

struct AdapterToLoad {
  std::string path;
  InputOptions options;
};
// Adapters of one model, each opened once. Without a base the module names of all of them say what the model is: some
// names alone fit several model types.
std::vector<Input> load_together(std::span<const AdapterToLoad> adapters);

}  // namespace peft::verbs
