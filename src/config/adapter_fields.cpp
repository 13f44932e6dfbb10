#include "config/adapter_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "config/peft_keys.h"

namespace peft::config {
namespace {

using Config = AdapterConfig;
using Strings = std::vector<std::string>;
using Integers = std::vector<std::int64_t>;

[[noreturn]] void wrong_type(const Config& config, std::string_view key, std::string expected, const Json& got,
                             std::string_view exception = {}) {
  refuse(ErrorCode::CF_VALUE, config, key, "the value has the wrong type", std::move(expected), got, exception);
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

Strings read_strings(const Json& value, const Config& config, std::string_view key, std::string_view exception = {}) {
  const bool right = value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_string(); });
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
  if (!is_integer(value)) refuse(ErrorCode::CF_RANK, config, key, "the rank is not an integer", expected, value, "TypeError");
  const bool fits = is_int64(value);
  if (fits && value.get<std::int64_t>() <= 0) {
    refuse(ErrorCode::CF_RANK, config, key, "the rank is not positive", expected, value, "ValueError");
  }
  if (!fits || value.get<std::int64_t>() > kMaxRank) {
    refuse(ErrorCode::CF_RANK, config, key, "the rank is larger than any weight", expected, value);
  }
  return value.get<std::int64_t>();
}

Number read_alpha(const Json& value, const Config& config, std::string_view key) {
  const std::string raw = raw_number(value);
  if (!value.is_number() && raw.empty()) {
    refuse(ErrorCode::CF_ALPHA, config, key, "alpha is not a number", "a finite number", value, "TypeError");
  }
  const double number = raw.empty() ? value.get<double>() : std::strtod(raw.c_str(), nullptr);
  if (!std::isfinite(number)) refuse(ErrorCode::CF_ALPHA, config, key, "alpha is not finite", "a finite number", value);
  return {number, is_integer(value)};
}

template <typename ReadValue>
PatternMap read_patterns(const Json& value, const Config& config, const std::string& key, ReadValue read_value) {
  PatternMap patterns;
  if (value.is_null()) return patterns;
  if (!value.is_object()) wrong_type(config, key, "an object", value);
  for (const auto& [pattern, number] : value.get_ref<const Json::object_t&>()) {
    patterns.emplace_back(pattern, read_value(number, config, key + "." + pattern));
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

template <typename T>
Json write_optional(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

void read_dropout(const Json& value, Config& config) {
  if (value.is_null()) return;
  if (!value.is_number()) wrong_type(config, "lora_dropout", "a number from 0 to 1", value);
  config.lora_dropout = value.get<double>();
  if (!(config.lora_dropout >= 0 && config.lora_dropout <= 1)) {
    refuse(ErrorCode::CF_VALUE, config, "lora_dropout", "the dropout is not a probability", "a number from 0 to 1", value,
           "ValueError");
  }
}

void read_init(const Json& value, Config& config) {
  constexpr std::string_view kInits[] = {"eva", "loftq", "orthogonal", "mica", "lora_ga"};
  constexpr std::string_view kPrefixes[] = {"pissa", "corda", "olora"};
  const std::string_view key = "init_lora_weights";
  if (value.is_null() || value.is_boolean()) {
    config.init_lora_weights = value == true ? "true" : "false";
    return;
  }
  if (!value.is_string()) wrong_type(config, key, "true, false or a name", value, "ValueError");
  config.init_lora_weights = value.get<std::string>();
  std::string lower = config.init_lora_weights;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool known = lower == "gaussian" ||
                     std::find(std::begin(kInits), std::end(kInits), config.init_lora_weights) != std::end(kInits) ||
                     std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                                 [&](std::string_view prefix) { return config.init_lora_weights.starts_with(prefix); });
  if (!known) {
    refuse(ErrorCode::CF_VALUE, config, key, "no such initialization",
           "true, false, gaussian, eva, olora, pissa, pissa_niter_N, corda, loftq, orthogonal, mica or lora_ga", value,
           "ValueError");
  }
}

void read_layers(const Json& value, Config& config) {
  config.layers_to_transform_is_int = is_int64(value);
  if (value.is_null()) {
    config.layers_to_transform.reset();
  } else if (config.layers_to_transform_is_int) {
    config.layers_to_transform = Integers{value.get<std::int64_t>()};
  } else {
    config.layers_to_transform = read_integers(value, config, "layers_to_transform");
  }
}

Json write_layers(const Config& config) {
  if (!config.layers_to_transform) return nullptr;
  const Integers& layers = *config.layers_to_transform;
  return config.layers_to_transform_is_int && layers.size() == 1 ? Json(layers[0]) : Json(layers);
}

void read_layers_pattern(const Json& value, Config& config) {
  if (value.is_null()) {
    config.layers_pattern.reset();
  } else if (value.is_string()) {
    config.layers_pattern = Strings{value.get<std::string>()};
  } else {
    config.layers_pattern = read_strings(value, config, "layers_pattern");
  }
}

void read_token_indices(const Json& value, Config& config) {
  const std::string key = "trainable_token_indices";
  config.trainable_token_indices.reset();
  if (value.is_null()) return;
  auto& modules = config.trainable_token_indices.emplace();
  if (!value.is_object()) {
    modules.emplace_back("", read_integers(value, config, key));
    return;
  }
  for (const auto& [module, ids] : value.get_ref<const Json::object_t&>()) {
    modules.emplace_back(module, read_integers(ids, config, key + "." + module));
  }
}

Json write_token_indices(const Config& config) {
  if (!config.trainable_token_indices) return nullptr;
  const auto& modules = *config.trainable_token_indices;
  if (modules.size() == 1 && modules[0].first.empty()) return modules[0].second;
  Json object = Json::object();
  auto& entries = object.get_ref<Json::object_t&>();
  for (const auto& [module, ids] : modules) entries.emplace_back(module, Json(ids));
  return object;
}

void read_type(const Json& value, Config& config) {
  if (!value.is_string() || value.get_ref<const std::string&>() != "LORA") {
    refuse(ErrorCode::CF_TYPE, config, "peft_type", "the adapter is of another type", "\"LORA\"", value, {},
           "only LoRA adapters can be used");
  }
}

void read_bias(const Json& value, Config& config) {
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  if (text != "none" && text != "all" && text != "lora_only") {
    refuse(ErrorCode::CF_VALUE, config, "bias", "no such bias setting", "\"none\", \"all\" or \"lora_only\"", value,
           "NotImplementedError");
  }
  config.bias = text;
}

Json write_init(const Config& config) {
  const std::string& init = config.init_lora_weights;
  return init == "true" ? Json(true) : init == "false" ? Json(false) : Json(init);
}

// A field that is read by `reader(value, config, key)` and written as it is, or by `writer(config.member)`.
#define PEFT_FIELD(member, reader, writer)                                                      \
  AdapterField {                                                                                \
    #member, [](const Json& value, Config& config) { config.member = reader(value, config, #member); }, \
        [](const Config& config) -> Json { return writer(config.member); }                      \
  }

constexpr auto kSame = [](const auto& value) { return Json(value); };
constexpr auto kOptional = [](const auto& value) { return write_optional(value); };
constexpr auto kReadOptionalStrings = [](const Json& value, const Config& config,
                                         std::string_view key) -> std::optional<Strings> {
  if (value.is_null()) return std::nullopt;
  return read_strings(value, config, key, key == "target_parameters" ? "TypeError" : "");
};
constexpr auto kReadRanks = [](const Json& value, const Config& config, const std::string& key) {
  return read_patterns(value, config, key, [](const Json& rank, const Config& c, const std::string& k) {
    return Number{static_cast<double>(read_rank(rank, c, k)), true};
  });
};
constexpr auto kReadAlphas = [](const Json& value, const Config& config, const std::string& key) {
  return read_patterns(value, config, key, read_alpha);
};
constexpr auto kReadMarker = [](const Json& value, const Config& config, std::string_view key) {
  return read_text(value, config, key).value_or("");
};

constexpr AdapterField kFields[] = {
    {"peft_type", read_type, [](const Config& config) -> Json { return config.peft_type; }},
    PEFT_FIELD(task_type, read_text, kOptional),
    PEFT_FIELD(peft_version, read_text, kOptional),
    PEFT_FIELD(base_model_name_or_path, read_text, kOptional),
    PEFT_FIELD(revision, read_text, kOptional),
    PEFT_FIELD(r, read_rank, kSame),
    PEFT_FIELD(lora_alpha, read_alpha, write_number),
    {"lora_dropout", read_dropout, [](const Config& config) -> Json { return config.lora_dropout; }},
    PEFT_FIELD(target_modules, read_names, write_names),
    PEFT_FIELD(exclude_modules, read_names, write_names),
    PEFT_FIELD(target_parameters, kReadOptionalStrings, kOptional),
    PEFT_FIELD(modules_to_save, kReadOptionalStrings, kOptional),
    {"layers_to_transform", read_layers, write_layers},
    {"layers_pattern", read_layers_pattern, [](const Config& config) { return write_optional(config.layers_pattern); }},
    PEFT_FIELD(rank_pattern, kReadRanks, write_patterns),
    PEFT_FIELD(alpha_pattern, kReadAlphas, write_patterns),
    PEFT_FIELD(fan_in_fan_out, read_bool, kSame),
    PEFT_FIELD(use_rslora, read_bool, kSame),
    PEFT_FIELD(use_dora, read_bool, kSame),
    PEFT_FIELD(lora_bias, read_bool, kSame),
    {"bias", read_bias, [](const Config& config) -> Json { return config.bias; }},
    {"init_lora_weights", read_init, write_init},
    {"trainable_token_indices", read_token_indices, write_token_indices},
    PEFT_FIELD(lora_B_layout, kReadMarker, kSame),
};
#undef PEFT_FIELD

// Values that cannot change what an unknown key's owner computes.
bool says_nothing(const Json& value) { return value.is_null() || value == false || (value.is_structured() && value.empty()); }

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
      field->read(value, config);
    } else if (find_peft_key(key) == nullptr && !is_known_extra(key) && !says_nothing(value)) {
      config.unknown.push_back(key);
    }
  }
  return config;
}

void refuse(ErrorCode code, const AdapterConfig& config, std::string_view key, std::string problem, std::string expected,
            const Json& got, std::string_view exception, std::string hint) {
  ErrorDetail detail;
  detail.file = config.file;
  detail.tensor = key;
  detail.problem = std::move(problem);
  detail.expected = std::move(expected);
  detail.got = dump_python(got, -1);
  if (!exception.empty()) detail.got += fmt::format(" (PEFT raises {})", exception);
  detail.hint = std::move(hint);
  throw Error(code, std::move(detail));
}

}  // namespace peft::config
