#include "config/adapter_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "config/peft_keys.h"
#include "config/peft_rules.h"
#include "peft/error.h"

namespace peft::config {
namespace {

using pythonic::dump_python;
using pythonic::raw_number;
using Config = AdapterConfig;
using Strings = std::vector<std::string>;
using Integers = std::vector<std::int64_t>;

[[noreturn]] void wrong_type(const Config& config, std::string_view key, std::string expected, const Json& got,
                             std::string exception = {}) {
  at(config.file, std::string(key))
      .fail(ErrorCode::CF_VALUE, {.problem = "the value has the wrong type",
                                  .expected = std::move(expected),
                                  .got = shown(got),
                                  .python_error = exception});
}

bool is_integer(const Json& value) { return value.is_number_integer() || !raw_number(value).empty(); }
bool is_int64(const Json& value) {
  return value.is_number_integer() &&
         !(value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX});
}

bool read_bool(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return false;  // as Python sees None
  if (!value.is_boolean()) wrong_type(config, key, "true or false", value);
  return value.get<bool>();
}

std::optional<std::string> read_text(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return std::nullopt;
  if (!value.is_string()) wrong_type(config, key, "a string or null", value);
  return value.get<std::string>();
}

Strings read_strings(const Json& value, const Config& config, std::string_view key, std::string exception = {}) {
  const bool right =
      value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_string(); });
  if (!right) wrong_type(config, key, "a list of strings or null", value, exception);
  return value.get<Strings>();
}

Integers read_integers(const Json& value, const Config& config, std::string_view key) {
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_int64)) {
    wrong_type(config, key, "a list of integers", value);
  }
  return value.get<Integers>();
}

NamesOrPattern read_names(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return std::monostate();
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) wrong_type(config, key, "null, a pattern or a list of names", value);
  return read_strings(value, config, key);
}

std::int64_t read_rank(const Json& value, const Config& config, std::string_view key) {
  const std::string expected = fmt::format("an integer from 1 to {}", kMaxRank);
  if (!is_integer(value))
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_RANK, {.problem = "the rank is not an integer",
                                   .expected = expected,
                                   .got = shown(value),
                                   .python_error = "TypeError"});
  const bool fits = is_int64(value);
  if (fits && value.get<std::int64_t>() <= 0) {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_RANK, {.problem = "the rank is not positive",
                                   .expected = expected,
                                   .got = shown(value),
                                   .python_error = "ValueError"});
  }
  if (!fits || value.get<std::int64_t>() > kMaxRank) {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_RANK,
              {.problem = "the rank is larger than any weight", .expected = expected, .got = shown(value)});
  }
  return value.get<std::int64_t>();
}

Number read_alpha(const Json& value, const Config& config, std::string_view key) {
  const std::string raw = raw_number(value);
  if (!value.is_number() && raw.empty()) {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_ALPHA, {.problem = "alpha is not a number",
                                    .expected = "a finite number",
                                    .got = shown(value),
                                    .python_error = "TypeError"});
  }
  const double number = raw.empty() ? value.get<double>() : std::strtod(raw.c_str(), nullptr);
  if (!std::isfinite(number))
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_ALPHA,
              {.problem = "alpha is not finite", .expected = "a finite number", .got = shown(value)});
  return {number, is_integer(value)};
}

template <typename ReadValue>
PatternMap read_patterns(const Json& value, const Config& config, std::string_view key, ReadValue read_value) {
  PatternMap patterns;
  if (value.is_null()) return patterns;
  if (!value.is_object()) wrong_type(config, key, "an object", value);
  for (const auto& [pattern, number] : value.get_ref<const Json::object_t&>()) {
    patterns.emplace_back(pattern, read_value(number, config, std::string(key) + "." + pattern));
  }
  return patterns;
}

Json write_number(const Number& number) {
  constexpr double kExact = 9007199254740992;  // integers beyond 2^53 are not exact in a double
  if (number.integer && std::abs(number.value) <= kExact) return static_cast<std::int64_t>(number.value);
  return number.value;
}

Json write_patterns(const PatternMap& patterns) {
  Json object = Json::object();
  auto& entries = object.get_ref<Json::object_t&>();
  for (const auto& [pattern, number] : patterns) entries.emplace_back(pattern, write_number(number));
  return object;
}

Json write_names(const NamesOrPattern& names) {
  if (const auto* pattern = std::get_if<std::string>(&names)) return *pattern;
  if (const auto* list = std::get_if<Strings>(&names)) return *list;
  return nullptr;
}

double read_dropout(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return 0;
  if (!value.is_number()) wrong_type(config, key, "a number from 0 to 1", value);
  const auto dropout = value.get<double>();
  if (!(dropout >= 0 && dropout <= 1)) {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_VALUE, {.problem = "the dropout is not a probability",
                                    .expected = "a number from 0 to 1",
                                    .got = shown(value),
                                    .python_error = "ValueError"});
  }
  return dropout;
}

std::string read_init(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null() || value.is_boolean()) return value == true ? "true" : "false";
  if (!value.is_string()) wrong_type(config, key, "true, false or a name", value, "ValueError");
  std::string name = value.get<std::string>();
  if (name == "true" || name == "false" || !lora_init(name)) {  // the booleans are no strings
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_VALUE,
              {.problem = "no such initialization",
               .expected =
                   "true, false, gaussian, eva, olora, pissa, pissa_niter_N, corda, loftq, orthogonal, mica or lora_ga",
               .got = shown(value),
               .python_error = "ValueError"});
  }
  return name;
}

Json write_init(const std::string& init) {
  return init == "true" ? Json(true) : init == "false" ? Json(false) : Json(init);
}

void read_layers(const Json& value, Config& config, std::string_view key) {
  config.layers_to_transform_is_int = is_int64(value);
  if (value.is_null()) {
    config.layers_to_transform.reset();
  } else if (config.layers_to_transform_is_int) {
    config.layers_to_transform = Integers{value.get<std::int64_t>()};
  } else {
    config.layers_to_transform = read_integers(value, config, key);
  }
}

Json write_layers(const Config& config) {
  if (!config.layers_to_transform) return nullptr;
  const Integers& layers = *config.layers_to_transform;
  return config.layers_to_transform_is_int && layers.size() == 1 ? Json(layers[0]) : Json(layers);
}

std::optional<Strings> read_layers_pattern(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return Strings{value.get<std::string>()};
  return read_strings(value, config, key);
}

using TokenIndices = decltype(Config::trainable_token_indices);

TokenIndices read_token_indices(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return std::nullopt;
  TokenIndices modules(std::in_place);
  if (!value.is_object()) {
    modules->emplace_back("", read_integers(value, config, key));
    return modules;
  }
  for (const auto& [module, ids] : value.get_ref<const Json::object_t&>()) {
    modules->emplace_back(module, read_integers(ids, config, std::string(key) + "." + module));
  }
  return modules;
}

Json write_token_indices(const TokenIndices& modules) {
  if (!modules) return nullptr;
  if (modules->size() == 1 && modules->front().first.empty()) return modules->front().second;
  Json object = Json::object();
  auto& entries = object.get_ref<Json::object_t&>();
  for (const auto& [module, ids] : *modules) entries.emplace_back(module, Json(ids));
  return object;
}

std::string read_type(const Json& value, const Config& config, std::string_view key) {
  if (!value.is_string() || value.get_ref<const std::string&>() != "LORA") {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_TYPE, {.problem = "the adapter is of another type",
                                   .expected = "\"LORA\"",
                                   .got = shown(value),
                                   .hint = "only LoRA adapters can be used"});
  }
  return "LORA";
}

std::string read_bias(const Json& value, const Config& config, std::string_view key) {
  std::string text = value.is_string() ? value.get<std::string>() : "";
  if (text != "none" && text != "all" && text != "lora_only") {
    at(config.file, std::string(key))
        .fail(ErrorCode::CF_VALUE, {.problem = "no such bias setting",
                                    .expected = "\"none\", \"all\" or \"lora_only\"",
                                    .got = shown(value),
                                    .python_error = "NotImplementedError"});
  }
  return text;
}

std::optional<Strings> read_optional_strings(const Json& value, const Config& config, std::string_view key) {
  if (value.is_null()) return std::nullopt;
  return read_strings(value, config, key, key == "target_parameters" ? "TypeError" : "");
}

PatternMap read_ranks(const Json& value, const Config& config, std::string_view key) {
  return read_patterns(value, config, key, [](const Json& rank, const Config& c, std::string_view k) {
    return Number{static_cast<double>(read_rank(rank, c, k)), true};
  });
}

PatternMap read_alphas(const Json& value, const Config& config, std::string_view key) {
  return read_patterns(value, config, key, read_alpha);
}

std::string read_marker(const Json& value, const Config& config, std::string_view key) {
  return read_text(value, config, key).value_or("");
}

constexpr auto kSame = [](const auto& value) { return Json(value); };
constexpr auto kOptional = [](const auto& value) { return value ? Json(*value) : Json(); };

// A row of the table: `kRead` makes the member's value from JSON, `kWrite` makes JSON from it.
template <auto kMember, auto kRead, auto kWrite>
constexpr AdapterField field(std::string_view key) {
  return {key, [](const Json& value, Config& config, std::string_view k) { config.*kMember = kRead(value, config, k); },
          [](const Config& config) -> Json { return kWrite(config.*kMember); }};
}

constexpr AdapterField kFields[] = {
    field<&Config::peft_type, read_type, kSame>("peft_type"),
    field<&Config::task_type, read_text, kOptional>("task_type"),
    field<&Config::peft_version, read_text, kOptional>("peft_version"),
    field<&Config::base_model_name_or_path, read_text, kOptional>("base_model_name_or_path"),
    field<&Config::revision, read_text, kOptional>("revision"),
    field<&Config::r, read_rank, kSame>("r"),
    field<&Config::lora_alpha, read_alpha, write_number>("lora_alpha"),
    field<&Config::lora_dropout, read_dropout, kSame>("lora_dropout"),
    field<&Config::target_modules, read_names, write_names>("target_modules"),
    field<&Config::exclude_modules, read_names, write_names>("exclude_modules"),
    field<&Config::target_parameters, read_optional_strings, kOptional>("target_parameters"),
    field<&Config::modules_to_save, read_optional_strings, kOptional>("modules_to_save"),
    {"layers_to_transform", read_layers, write_layers},
    field<&Config::layers_pattern, read_layers_pattern, kOptional>("layers_pattern"),
    field<&Config::rank_pattern, read_ranks, write_patterns>("rank_pattern"),
    field<&Config::alpha_pattern, read_alphas, write_patterns>("alpha_pattern"),
    field<&Config::fan_in_fan_out, read_bool, kSame>("fan_in_fan_out"),
    field<&Config::use_rslora, read_bool, kSame>("use_rslora"),
    field<&Config::use_dora, read_bool, kSame>("use_dora"),
    field<&Config::lora_bias, read_bool, kSame>("lora_bias"),
    field<&Config::bias, read_bias, kSame>("bias"),
    field<&Config::init_lora_weights, read_init, write_init>("init_lora_weights"),
    field<&Config::trainable_token_indices, read_token_indices, write_token_indices>("trainable_token_indices"),
    field<&Config::lora_B_layout, read_marker, kSame>("lora_B_layout"),
};

// Values that cannot change what an unknown key's owner computes.
bool says_nothing(const Json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

// The error for NaN, Infinity or 1e400, from the key it stands at.
ErrorCode code_for_number(std::string_view key) {
  if (key == "r" || key == "rank_pattern") return ErrorCode::CF_RANK;
  if (key == "lora_alpha" || key == "alpha_pattern") return ErrorCode::CF_ALPHA;
  return ErrorCode::CF_FORM;
}

// The object that a config made in memory starts from: all keys of its PEFT version, with their defaults.
Json default_object(const AdapterConfig& config) {
  const auto version = config.stated_version().value_or(kNewestPeft);
  Json object = Json::object();
  for (const PeftKey& row : peft_keys()) {
    if (version > row.before) object[std::string(row.key)] = Json::parse(row.value);
  }
  return object;
}

// PEFT holds these lists as sets and writes them in any order.
Json sorted_if_set(std::string_view key, Json value) {
  if (!value.is_array() || (key != "target_modules" && key != "exclude_modules")) return value;
  return value.get<std::set<std::string>>();
}

}  // namespace

std::span<const AdapterField> adapter_fields() { return kFields; }

const AdapterField* find_adapter_field(std::string_view key) {
  const auto* found =
      std::find_if(std::begin(kFields), std::end(kFields), [&](const AdapterField& field) { return field.key == key; });
  return found == std::end(kFields) ? nullptr : found;
}

AdapterConfig read_fields(const Json& object, const std::string& file) {
  AdapterConfig config;
  config.file = file;
  for (const auto& [key, value] : object.get_ref<const Json::object_t&>()) {
    config.present.push_back(key);
    if (const AdapterField* field = find_adapter_field(key)) {
      field->read(value, config, key);
    } else if (find_peft_key(key) == nullptr && !is_known_extra(key) && !says_nothing(value)) {
      config.unknown.push_back(key);
    }
  }
  return config;
}

Json parse_object(std::string_view text, const std::string& file) {
  Json object = pythonic::parse_json(text, file, ErrorCode::CF_FORM, code_for_number);
  if (!object.is_object())
    at(file).fail(ErrorCode::CF_FORM,
                  {.problem = "not a JSON object", .expected = "an object", .got = object.type_name()});
  return object;
}

Json original_object(const AdapterConfig& config) {
  return config.json.empty() ? default_object(config) : parse_object(config.json, config.file);
}

Json object_of(const AdapterConfig& config) {
  Json object = original_object(config);
  const AdapterConfig before = read_fields(object, config.file);
  for (const AdapterField& field : adapter_fields()) {
    Json value = field.write(config);
    // Compared as text: 5 and 5.0 are different files.
    if (dump_python(value, -1, false) == dump_python(field.write(before), -1, false)) continue;
    object[std::string(field.key)] = sorted_if_set(field.key, std::move(value));
  }
  return object;
}

std::vector<TellingKey> telling_keys(const AdapterConfig& config) {
  std::vector<TellingKey> found;
  const Json object = object_of(config);
  for (const auto& [key, value] : object.get_ref<const Json::object_t&>()) {
    const PeftKey* row = find_config_key(key);
    if (row != nullptr && tells(*row, value)) found.push_back({row, dump_python(value, -1)});
  }
  return found;
}

std::string shown(const Json& value) { return dump_python(value, -1); }

}  // namespace peft::config
