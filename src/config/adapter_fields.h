// The typed fields of AdapterConfig: one row per key, how it is read and how it is written.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "config/python_json.h"
#include "peft/config.h"

namespace peft::config {

struct AdapterField {
  std::string_view key;
  void (*read)(const Json& value, AdapterConfig& config, std::string_view key);  // throws CF_* with file and key
  Json (*write)(const AdapterConfig& config);
};

std::span<const AdapterField> adapter_fields();
const AdapterField* find_adapter_field(std::string_view key);

// A config with the values of a JSON object, and nothing checked but each value alone.
AdapterConfig read_fields(const Json& object, const std::string& file);

// What dump() writes: the file's own values, and over them every field that says something else.
Json object_of(const AdapterConfig& config);

// What PEFT refuses in the config as a whole (adapter_checks.cpp).
void check_together(const AdapterConfig& config, const Json& object);

// A value that PEFT refuses or cannot use. `exception` is the class PEFT raises, "" when it raises none.
[[noreturn]] void refuse(ErrorCode code, const AdapterConfig& config, std::string_view key, std::string problem,
                         std::string expected, const Json& got, std::string_view exception = {}, std::string hint = {});

// Highest rank that makes any sense; far above every hidden size.
constexpr std::int64_t kMaxRank = 1 << 20;

}  // namespace peft::config
