#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "config/python_json.h"
#include "config/suffix_pattern.h"
#include "peft/config.h"

namespace peft {
namespace {

using config::Json;

// The error for NaN, Infinity or 1e400, from the key it stands at.
ErrorCode code_for_number(std::string_view key) {
  if (key == "r" || key == "rank_pattern") return ErrorCode::CF_RANK;
  if (key == "lora_alpha" || key == "alpha_pattern") return ErrorCode::CF_ALPHA;
  return ErrorCode::CF_FORM;
}

[[noreturn]] void fail(ErrorCode code, const std::string& file, std::string key, std::string problem,
                       std::string expected, std::string got, std::string hint = {}) {
  throw Error(code, {.file = file,
                     .tensor = std::move(key),
                     .problem = std::move(problem),
                     .expected = std::move(expected),
                     .got = std::move(got),
                     .hint = std::move(hint)});
}

Json parse_object(std::string_view text, const std::string& file) {
  Json object = config::parse_json(text, file, ErrorCode::CF_FORM, code_for_number);
  if (!object.is_object()) fail(ErrorCode::CF_FORM, file, {}, "not a JSON object", "an object", object.type_name());
  return object;
}

// The object that a config made in memory starts from: all keys of its PEFT version, with their defaults.
Json default_object(const AdapterConfig& config) {
  const auto version = config.stated_version().value_or(config::kNewestPeft);
  Json object = Json::object();
  for (const config::PeftKey& row : config::peft_keys()) {
    if (version > row.before) object[std::string(row.key)] = Json::parse(row.value);
  }
  return object;
}

Json original_object(const AdapterConfig& config) {
  return config.json.empty() ? default_object(config) : parse_object(config.json, config.file);
}

// PEFT holds these as sets, and writes them in any order.
Json sorted_if_set(std::string_view key, Json value) {
  if (!value.is_array() || (key != "target_modules" && key != "exclude_modules")) return value;
  return value.get<std::set<std::string>>();
}

void replace_object(AdapterConfig& config, const Json& object) {
  config.json = config::dump_python(object, 2, false);
  const AdapterConfig read = config::read_fields(object, config.file);
  config.present = read.present;
  config.unknown = read.unknown;
}

}  // namespace

Json config::object_of(const AdapterConfig& config) {
  Json object = original_object(config);
  const AdapterConfig before = config::read_fields(object, config.file);
  for (const config::AdapterField& field : config::adapter_fields()) {
    Json value = field.write(config);
    // Compared as text: 5 and 5.0 are different files.
    if (config::dump_python(value, -1, false) == config::dump_python(field.write(before), -1, false)) continue;
    object[std::string(field.key)] = sorted_if_set(field.key, std::move(value));
  }
  return object;
}

AdapterConfig AdapterConfig::read(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path given = path;
  const std::string file =
      std::filesystem::is_directory(given, ignored) ? (given / "adapter_config.json").string() : path;
  return parse(config::read_text_file(file), file);
}

AdapterConfig AdapterConfig::parse(std::string_view text, const std::string& file) {
  const Json object = parse_object(text, file);
  if (!object.contains("peft_type")) {
    const bool mlx = object.contains("fine_tune_type");
    fail(ErrorCode::CF_TYPE, file, "peft_type", "the key is missing", "\"LORA\"", "no such key",
         mlx ? "fine_tune_type is a key of mlx-lm, not of PEFT" : "is this PEFT's adapter_config.json?");
  }
  // Another method's fields mean something else: what they hold is none of our business.
  AdapterConfig config;
  config.file = file;
  config::find_adapter_field("peft_type")->read(object["peft_type"], config, "peft_type");
  config = config::read_fields(object, file);
  config.json = text;
  config::check_together(config, object);
  return config;
}

std::string AdapterConfig::dump() const { return config::dump_python(config::object_of(*this)); }

std::string AdapterConfig::value(std::string_view key) const {
  const Json object = config::object_of(*this);
  const auto found = object.find(std::string(key));
  return found == object.end() ? "" : config::dump_python(*found, -1);
}

void AdapterConfig::set(std::string_view key, std::string_view json_value) {
  Json object = original_object(*this);
  Json value = config::parse_json(json_value, file, ErrorCode::CF_VALUE);
  if (const config::AdapterField* field = config::find_adapter_field(key)) field->read(value, *this, key);
  object[std::string(key)] = std::move(value);
  replace_object(*this, object);
}

void AdapterConfig::erase(std::string_view key) {
  Json object = original_object(*this);
  object.erase(std::string(key));
  if (const config::AdapterField* field = config::find_adapter_field(key)) {
    // The field goes back to PEFT's default, in the one form all fields have: its JSON.
    const AdapterConfig defaults;
    field->read(field->write(defaults), *this, key);
  }
  replace_object(*this, object);
}

std::int64_t AdapterConfig::rank_for(std::string_view name) const {
  for (const auto& [pattern, rank] : rank_pattern) {
    if (config::suffix_pattern(pattern).matches(name)) return static_cast<std::int64_t>(rank.value);
  }
  return r;
}

double AdapterConfig::alpha_for(std::string_view name) const {
  for (const auto& [pattern, alpha] : alpha_pattern) {
    if (config::suffix_pattern(pattern).matches(name)) return alpha.value;
  }
  return lora_alpha.value;
}

double AdapterConfig::scale_for(std::string_view name, std::int64_t rank) const {
  if (rank <= 0) {
    fail(ErrorCode::CF_RANK, file, std::string(name), "a scale needs a positive rank", "at least 1",
         std::to_string(rank));
  }
  const auto divisor = static_cast<double>(rank);
  return alpha_for(name) / (use_rslora ? std::sqrt(divisor) : divisor);
}

}  // namespace peft
