#include "model/config_json/config_section.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "peft/error.h"

namespace peft::model {
namespace {

constexpr const char* kLacksKey = "the config lacks a key that the model needs";

}  // namespace

ConfigFacts read_config_facts(const std::string& path) {
  const std::filesystem::path given(path);
  const std::string file = std::filesystem::is_directory(given) ? (given / "config.json").string() : path;
  return {read_object(file), file};
}

ConfigSection ConfigSection::read(const std::string& file) { return {read_object(file), file}; }

void ConfigSection::fail(const std::string& key, ErrorReason reason) const {
  at(file_, path_ + key).fail(ErrorCode::MD_FORM, std::move(reason));
}

const Json* ConfigSection::find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigSection::has(const char* key) const { return find(key) != nullptr; }

std::string ConfigSection::show(const char* key) const {
  const Json* value = find(key);
  return value == nullptr ? "nothing" : value->dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::int64_t ConfigSection::size(const char* key, std::int64_t limit) const {
  const Json* value = find(key);
  const bool good = value != nullptr && value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<std::uint64_t>() <= static_cast<std::uint64_t>(limit));
  const std::int64_t number = good ? value->get<std::int64_t>() : 0;
  if (number <= 0 || number > limit) {
    fail(key, {.problem = value == nullptr ? kLacksKey : "a size that cannot be",
               .expected = "an integer from 1 to " + std::to_string(limit),
               .got = show(key)});
  }
  return number;
}

std::int64_t ConfigSection::size_or(const char* key, std::int64_t fallback) const {
  return has(key) ? size(key) : fallback;
}

std::int64_t ConfigSection::size_of(std::initializer_list<const char*> keys, std::int64_t limit) const {
  for (const char* key : keys)
    if (has(key)) return size(key, limit);
  return size(*keys.begin(), limit);
}

std::int64_t ConfigSection::whole(const char* key, std::int64_t fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number_integer()) fail(key, {.problem = "not an integer", .expected = "an integer", .got = show(key)});
  return value->get<std::int64_t>();
}

double ConfigSection::number(const char* key, double fallback) const {
  return has(key) ? needed_number(key) : fallback;
}

double ConfigSection::needed_number(const char* key) const {
  const Json* value = find(key);
  const bool good = value != nullptr && value->is_number() && std::isfinite(value->get<double>());
  if (!good)
    fail(key, {.problem = value == nullptr ? kLacksKey : "not a number", .expected = "a number", .got = show(key)});
  return value->get<double>();
}

bool ConfigSection::flag(const char* key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(key, {.problem = "not true or false", .expected = "true or false", .got = show(key)});
  return value->get<bool>();
}

std::string ConfigSection::text(const char* key, const std::string& fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) fail(key, {.problem = "not a string", .expected = "a string", .got = show(key)});
  return value->get<std::string>();
}

std::vector<std::int64_t> ConfigSection::one_or_more(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  std::vector<std::int64_t> numbers;
  for (const Json& entry : value->is_array() ? *value : Json::array({*value})) {
    if (!entry.is_number_integer())
      fail(key, {.problem = "not an integer", .expected = "an integer or a list of integers", .got = show(key)});
    numbers.push_back(entry.get<std::int64_t>());
  }
  return numbers;
}

std::vector<std::string> ConfigSection::texts(const char* key) const {
  std::vector<std::string> names;
  const Json* value = find(key);
  if (value == nullptr) return names;
  if (!value->is_array()) fail(key, {.problem = "not a list", .expected = "a list of names", .got = show(key)});
  for (const Json& entry : *value) {
    if (!entry.is_string())
      fail(key, {.problem = "not a list of names", .expected = "a list of names", .got = show(key)});
    names.push_back(entry.get<std::string>());
  }
  return names;
}

ConfigSection ConfigSection::section(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_object())
    fail(key,
         {.problem = "the config lacks a section that the model needs", .expected = "an object", .got = show(key)});
  ConfigSection result(*value, file_);
  result.path_ = path_ + key + ".";
  return result;
}

ConfigSection ConfigSection::without_keys() const {
  ConfigSection result(Json::object(), file_);
  result.path_ = path_;
  return result;
}

}  // namespace peft::model
