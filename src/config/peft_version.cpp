// Which PEFT version wrote a config.
#include <fmt/format.h>

#include <charconv>

#include "config/peft_keys.h"
#include "config/python_json.h"
#include "peft/config.h"

namespace peft {
namespace {

using Version = AdapterConfig::Version;

std::string text_of(const Version& version) {
  return fmt::format("{}.{}.{}", version.major, version.minor, version.patch);
}

// "0.18.1", "0.20.0.dev0@3f2a", "0.17": what follows the numbers is left.
std::optional<Version> parse_version(std::string_view text) {
  Version version;
  int* const parts[] = {&version.major, &version.minor, &version.patch};
  int count = 0;
  for (int* part : parts) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *part);
    if (error != std::errc() || *part < 0) break;
    ++count;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (!text.starts_with('.')) break;
    text.remove_prefix(1);
  }
  if (count < 2) return std::nullopt;
  return version;
}

}  // namespace

std::optional<Version> AdapterConfig::stated_version() const {
  return peft_version ? parse_version(*peft_version) : std::nullopt;
}

std::pair<Version, std::string> AdapterConfig::likely_version() const {
  const config::PeftKey* newest = nullptr;
  for (const std::string& key : present) {
    const config::PeftKey* row = config::find_peft_key(key);
    if (row != nullptr && (newest == nullptr || row->since > newest->since)) newest = row;
  }
  const std::optional<Version> stated = stated_version();
  if (stated && (newest == nullptr || *stated > newest->before)) {
    return {*stated, fmt::format("peft_version is {}, and no key is newer", text_of(*stated))};
  }
  if (newest == nullptr) return {config::peft_keys().front().since, "the file has no key that tells"};
  const std::string key = fmt::format("{} is written since {}", newest->key, text_of(newest->since));
  if (stated) return {newest->since, fmt::format("{}, so peft_version {} is an older file's", key, text_of(*stated))};
  return {newest->since, fmt::format("no peft_version (written since 0.18); the newest key: {}", key)};
}

void AdapterConfig::drop_keys_newer_than(const Version& version) {
  for (const config::PeftKey& row : config::peft_keys()) {
    if (version > row.before) continue;
    const std::string text = value(row.key);
    if (!text.empty() && text == config::dump_python(config::Json::parse(row.value), -1)) erase(row.key);
  }
}

}  // namespace peft
