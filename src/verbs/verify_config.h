// What two configs say about when and where their factors act, beside the factors themselves.
#pragma once

#include <string>
#include <vector>

#include "peft/config.h"

namespace peft::verbs {

struct ConfigDifference {
  std::string key, what;
};

// Fields that verify uses and that no factor shows: alora_invocation_tokens, layer_replication, arrow_config.
std::vector<ConfigDifference> compare_configs(const AdapterConfig& a, const AdapterConfig& b);

}  // namespace peft::verbs
