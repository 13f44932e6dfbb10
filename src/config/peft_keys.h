// The keys of adapter_config.json, and which PEFT version writes them.
#pragma once

#include <span>
#include <string_view>

#include "peft/config.h"

namespace peft::config {

struct PeftKey {
  std::string_view key;
  AdapterConfig::Version since;   // the first tried version that writes it
  AdapterConfig::Version before;  // the last tried version that does not
  std::string_view value;         // default of the newest version, as JSON
};

constexpr AdapterConfig::Version kNewestPeft{0, 21, 2};

std::span<const PeftKey> peft_keys();  // sorted by key
const PeftKey* find_peft_key(std::string_view key);

// Keys that no PEFT version wrote, but that we know: Unsloth's marks, what PEFT itself drops, our own.
bool is_known_extra(std::string_view key);

}  // namespace peft::config
