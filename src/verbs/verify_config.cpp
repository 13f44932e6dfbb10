#include "verbs/verify_config.h"

#include <fmt/format.h>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"

namespace peft::verbs {
namespace {

// The value as JSON text; "null" for all that says nothing.
std::string telling_value(const config::PeftKey& row, const pythonic::Json& object) {
  const auto found = object.find(row.key);
  return found != object.end() && config::tells(row, *found) ? pythonic::dump_python(*found, -1) : "null";
}

}  // namespace

std::vector<ConfigDifference> compare_configs(const AdapterConfig& a, const AdapterConfig& b) {
  const pythonic::Json of_a = config::object_of(a), of_b = config::object_of(b);
  std::vector<ConfigDifference> differences;
  for (const config::PeftKey& row : config::peft_keys()) {
    // What has a field of AdapterConfig is in the factors already: a scale, a rank, a bias.
    if (!row.used.contains(Verb::verify) || config::find_adapter_field(row.key) != nullptr) continue;
    const std::string x = telling_value(row, of_a), y = telling_value(row, of_b);
    if (x != y)
      differences.push_back({std::string(row.key), fmt::format("{} in the first config, {} in the second", x, y)});
  }
  return differences;
}

}  // namespace peft::verbs
