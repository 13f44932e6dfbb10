// The typed fields of AdapterConfig: one row per key, how it is read and how it is written.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/peft_keys.h"
#include "peft/config.h"

namespace peft::config {

struct AdapterField {
  std::string_view key;
  void (*read)(const Json& value, AdapterConfig& config, std::string_view key);  // throws CF_* with file and key
  Json (*write)(const AdapterConfig& config);
};

std::span<const AdapterField> adapter_fields();
const AdapterField* find_adapter_field(std::string_view key);

// A config with the values of a JSON object. Each value is checked by itself, and nothing else.
AdapterConfig read_fields(const Json& object, const std::string& file);

// Throws CF_* for a text that is not one JSON object.
Json parse_object(std::string_view text, const std::string& file);
// The object that the file holds. A config made in memory starts from all keys of its PEFT version, with their
// defaults.
Json original_object(const AdapterConfig& config);
// The object that dump() writes: the values of the file, and over them every field that has changed.
Json object_of(const AdapterConfig& config);

// The keys of a config that say something to a verb, with their values as JSON text.
struct TellingKey {
  const PeftKey* row = nullptr;
  std::string value;
};
std::vector<TellingKey> telling_keys(const AdapterConfig& config);

// A value as errors show it: as JSON on one line.
std::string shown(const Json& value);

// The highest rank that is accepted; it is far above every hidden size.
constexpr std::int64_t kMaxRank = 1 << 20;

}  // namespace peft::config
