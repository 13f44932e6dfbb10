#include "peft/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "peft/error.h"
#include "pythonic/python_json.h"
#include "pythonic/python_regex.h"
#include "safetensors/reading/input_file.h"

namespace peft {
namespace {

using pythonic::Json;

// bool(value) in Python.
bool is_true(const Json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  return !value.empty();
}

Json value_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? Json() : *found;
}

bool is_all_linear(const std::string& target) {
  std::string lower = target;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower == "all-linear";
}

void check_task(const AdapterConfig& config) {
  constexpr std::string_view kTasks[] = {"SEQ_CLS",   "SEQ_2_SEQ_LM", "CAUSAL_LM",
                                         "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"};
  if (!config.task_type || std::find(std::begin(kTasks), std::end(kTasks), *config.task_type) != std::end(kTasks))
    return;
  at(config.file, "task_type")
      .fail(ErrorCode::CF_VALUE,
            {.problem = "no such task",
             .expected = "SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION or null",
             .got = config::shown(*config.task_type),
             .python_error = "ValueError"});
}

void check_layers(const AdapterConfig& config) {
  const bool pattern_targets = std::holds_alternative<std::string>(config.target_modules);
  const std::string hint = "write the layers into the pattern, or make target_modules a list";
  if (pattern_targets && config.layers_to_transform) {
    at(config.file, "layers_to_transform")
        .fail(ErrorCode::CF_VALUE, {.problem = "cannot go with a target_modules that is a string",
                                    .expected = "null",
                                    .got = config::shown(*config.layers_to_transform),
                                    .hint = hint,
                                    .python_error = "ValueError"});
  }
  if (pattern_targets && config.layers_pattern) {
    at(config.file, "layers_pattern")
        .fail(ErrorCode::CF_VALUE, {.problem = "cannot go with a target_modules that is a string",
                                    .expected = "null",
                                    .got = config::shown(*config.layers_pattern),
                                    .hint = hint,
                                    .python_error = "ValueError"});
  }
  const bool has_pattern =
      config.layers_pattern && std::any_of(config.layers_pattern->begin(), config.layers_pattern->end(),
                                           [](const std::string& pattern) { return !pattern.empty(); });
  if (has_pattern && !config.layers_to_transform) {
    at(config.file, "layers_pattern")
        .fail(ErrorCode::CF_VALUE, {.problem = "means nothing without layers_to_transform",
                                    .expected = "layers_to_transform beside it",
                                    .got = config::shown(*config.layers_pattern),
                                    .python_error = "ValueError"});
  }
}

void check_variants(const AdapterConfig& config, const Json& object) {
  if (config.use_dora && is_true(value_of(object, "megatron_config"))) {
    at(config.file, "use_dora")
        .fail(ErrorCode::CF_VALUE, {.problem = "DoRA does not go with megatron_config",
                                    .expected = "false",
                                    .got = config::shown(true),
                                    .python_error = "ValueError"});
  }
  if (config.init_lora_weights == "loftq" && !is_true(value_of(object, "loftq_config"))) {
    at(config.file, "loftq_config")
        .fail(ErrorCode::CF_VALUE, {.problem = "must be given when init_lora_weights is loftq",
                                    .expected = "an object such as {\"loftq_bits\": 4}",
                                    .got = config::shown(value_of(object, "loftq_config")),
                                    .python_error = "ValueError, or ImportError where scipy is missing"});
  }
  const bool plain_init = config.init_lora_weights == "true" || config.init_lora_weights == "false";
  if (config.lora_bias && !plain_init) {
    at(config.file, "lora_bias")
        .fail(ErrorCode::CF_VALUE, {.problem = "goes only with init_lora_weights true or false",
                                    .expected = "false",
                                    .got = config::shown(true),
                                    .python_error = "ValueError"});
  }
  if (config.lora_bias && config.use_dora) {
    at(config.file, "lora_bias")
        .fail(ErrorCode::CF_VALUE, {.problem = "does not go with use_dora",
                                    .expected = "false",
                                    .got = config::shown(true),
                                    .python_error = "ValueError"});
  }
  for (const char* key : {"velora_config", "kasa_config"}) {
    const Json value = value_of(object, key);
    if (!value.is_null() && !value.is_object()) {
      at(config.file, std::string(key))
          .fail(ErrorCode::CF_VALUE, {.problem = "the value has the wrong type",
                                      .expected = "an object or null",
                                      .got = config::shown(value),
                                      .python_error = "ValueError"});
    }
  }
  if (config.init_lora_weights == "orthogonal" && config.rank_pattern.empty() && config.r % 2 != 0) {
    at(config.file, "r")
        .fail(ErrorCode::CF_VALUE, {.problem = "orthogonal initialization needs an even rank",
                                    .expected = "an even number",
                                    .got = config::shown(config.r),
                                    .python_error = "ValueError"});
  }
}

void check_pattern(const AdapterConfig& config, const std::string& pattern, const std::string& key) {
  try {
    const PythonRegex compiled(pattern, key);
  } catch (const Error& error) {
    ErrorDetail detail = error.detail();
    detail.file = config.file;
    throw Error(error.code(), std::move(detail));
  }
}

// Compiles the patterns as PEFT puts them together. A mistake is reported as Python reports it.
void check_patterns(const AdapterConfig& config) {
  if (const auto* target = std::get_if<std::string>(&config.target_modules); target && !is_all_linear(*target)) {
    check_pattern(config, *target, "target_modules");
  }
  if (const auto* exclude = std::get_if<std::string>(&config.exclude_modules)) {
    check_pattern(config, *exclude, "exclude_modules");
  }
  for (const std::string& pattern : config.layers_pattern.value_or(std::vector<std::string>())) {
    check_pattern(config, ".*?\\." + pattern + "\\.(\\d+)\\.", "layers_pattern");
  }
  for (const std::string& name : config.modules_to_save.value_or(std::vector<std::string>())) {
    if (!pythonic::is_plain_name(name)) check_pattern(config, "(^|.*\\.)" + name + "($|\\..*)", "modules_to_save");
  }
  std::size_t patterns = 0;
  for (const auto& [map, key] :
       {std::pair(&config.rank_pattern, "rank_pattern"), {&config.alpha_pattern, "alpha_pattern"}}) {
    for (const auto& [pattern, value] : *map) {
      if (pythonic::is_plain_name(pattern)) continue;
      if (++patterns > pythonic::kMaxPatterns) {
        at(config.file, std::string(key))
            .fail(ErrorCode::CF_VALUE,
                  {.problem = "too many regular expressions",
                   .expected = fmt::format("at most {} that are not plain names", pythonic::kMaxPatterns),
                   .got = config::shown(map->size())});
      }
      check_pattern(config, pythonic::suffix_expression(pattern), key);
    }
  }
}

// What PEFT refuses when it builds a LoraConfig, or the layers of one, whatever the model is.
void check_together(const AdapterConfig& config, const Json& object) {
  check_task(config);
  check_layers(config);
  check_variants(config, object);
  check_patterns(config);
}

using pythonic::Json;

void replace_object(AdapterConfig& config, const Json& object) {
  config.json = pythonic::dump_python(object, 2, false);
  const AdapterConfig read = config::read_fields(object, config.file);
  config.present = read.present;
  config.unknown = read.unknown;
}

using Version = AdapterConfig::Version;

std::string text_of(const Version& version) {
  return fmt::format("{}.{}.{}", version.major, version.minor, version.patch);
}

// "0.18.1", "0.20.0.dev0@3f2a", "0.17". Text after the numbers is ignored.
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

constexpr std::size_t kMaxCells = std::size_t{1} << 24;  // beyond it, the middle is shown as all removed, all added

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  return lines;
}

void add_line(std::string& out, char mark, std::string_view line) {
  out += mark;
  out += line;
  out += '\n';
}

using Lines = std::vector<std::string_view>;

// By the longest common subsequence.
void diff_middle(const Lines& a, const Lines& b, std::string& out) {
  std::size_t i = 0, j = 0;
  if (a.size() * b.size() <= kMaxCells) {
    // common[i][j]: length of the longest common subsequence of a[i..] and b[j..]
    const std::size_t width = b.size() + 1;
    std::vector<std::uint32_t> common((a.size() + 1) * width, 0);
    for (std::size_t x = a.size(); x-- > 0;) {
      for (std::size_t y = b.size(); y-- > 0;) {
        common[x * width + y] = a[x] == b[y] ? common[(x + 1) * width + y + 1] + 1
                                             : std::max(common[(x + 1) * width + y], common[x * width + y + 1]);
      }
    }
    while (i < a.size() && j < b.size()) {
      if (a[i] == b[j]) {
        add_line(out, ' ', a[i++]);
        ++j;
      } else if (common[(i + 1) * width + j] >= common[i * width + j + 1]) {
        add_line(out, '-', a[i++]);
      } else {
        add_line(out, '+', b[j++]);
      }
    }
  }
  for (; i < a.size(); ++i) add_line(out, '-', a[i]);
  for (; j < b.size(); ++j) add_line(out, '+', b[j]);
}

}  // namespace

AdapterConfig AdapterConfig::read(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path given = path;
  const std::string file =
      std::filesystem::is_directory(given, ignored) ? (given / "adapter_config.json").string() : path;
  return parse(safetensors::read_text_file(file), file);
}

AdapterConfig AdapterConfig::parse(std::string_view text, const std::string& file) {
  const Json object = config::parse_object(text, file);
  if (!object.contains("peft_type")) {
    const bool mlx = object.contains("fine_tune_type");
    at(file, "peft_type")
        .fail(ErrorCode::CF_TYPE,
              {.problem = "the key is missing",
               .expected = "\"LORA\"",
               .got = "no such key",
               .hint = mlx ? "fine_tune_type is a key of mlx-lm, not of PEFT" : "is this PEFT's adapter_config.json?"});
  }
  // The fields of other methods mean something else, so the type is checked before them.
  AdapterConfig config;
  config.file = file;
  config::find_adapter_field("peft_type")->read(object["peft_type"], config, "peft_type");
  config = config::read_fields(object, file);
  config.json = text;
  check_together(config, object);
  return config;
}

std::string AdapterConfig::dump() const { return pythonic::dump_python(config::object_of(*this)); }

std::string AdapterConfig::value(std::string_view key) const {
  const Json object = config::object_of(*this);
  const auto found = object.find(std::string(key));
  return found == object.end() ? "" : pythonic::dump_python(*found, -1);
}

void AdapterConfig::set(std::string_view key, std::string_view json_value) {
  Json object = config::original_object(*this);
  Json value = pythonic::parse_json(json_value, file, ErrorCode::CF_VALUE);
  if (const config::AdapterField* field = config::find_adapter_field(key)) field->read(value, *this, key);
  object[std::string(key)] = std::move(value);
  replace_object(*this, object);
}

void AdapterConfig::erase(std::string_view key) {
  Json object = config::original_object(*this);
  object.erase(std::string(key));
  if (const config::AdapterField* field = config::find_adapter_field(key)) {
    // The field gets PEFT's default, through JSON, which every field can read.
    const AdapterConfig defaults;
    field->read(field->write(defaults), *this, key);
  }
  replace_object(*this, object);
}

std::int64_t AdapterConfig::rank_for(std::string_view name) const {
  for (const auto& [pattern, rank] : rank_pattern) {
    if (pythonic::suffix_pattern(pattern).matches(name)) return static_cast<std::int64_t>(rank.value);
  }
  return r;
}

double AdapterConfig::alpha_for(std::string_view name) const {
  for (const auto& [pattern, alpha] : alpha_pattern) {
    if (pythonic::suffix_pattern(pattern).matches(name)) return alpha.value;
  }
  return lora_alpha.value;
}

double AdapterConfig::scale_for(std::string_view name, std::int64_t rank) const {
  if (rank <= 0) {
    at(file, std::string(name))
        .fail(ErrorCode::CF_RANK,
              {.problem = "a scale needs a positive rank", .expected = "at least 1", .got = std::to_string(rank)});
  }
  const auto divisor = static_cast<double>(rank);
  return alpha_for(name) / (use_rslora ? std::sqrt(divisor) : divisor);
}

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
    if (!text.empty() && text == pythonic::dump_python(Json::parse(row.value), -1)) erase(row.key);
  }
}

std::string diff(std::string_view before, std::string_view after) {
  const Lines a = lines_of(before), b = lines_of(after);
  const std::size_t shorter = std::min(a.size(), b.size());
  std::size_t head = 0, tail = 0;
  while (head < shorter && a[head] == b[head]) ++head;
  while (tail < shorter - head && a[a.size() - 1 - tail] == b[b.size() - 1 - tail]) ++tail;

  std::string out;
  for (std::size_t i = 0; i < head; ++i) add_line(out, ' ', a[i]);
  const auto middle = [&](const Lines& lines) {
    return Lines(lines.begin() + static_cast<std::ptrdiff_t>(head), lines.end() - static_cast<std::ptrdiff_t>(tail));
  };
  diff_middle(middle(a), middle(b), out);
  for (std::size_t i = a.size() - tail; i < a.size(); ++i) add_line(out, ' ', a[i]);
  return out;
}

void require_usable(const AdapterConfig& config, Verb verb) {
  for (const auto& [row, value] : config::telling_keys(config)) {
    if (!row->refused.contains(verb)) continue;
    at(config.file, std::string(row->key))
        .fail(ErrorCode::CF_UNSUP, {.problem = std::string(row->why),
                                    .expected = "no value, for " + config::names({verb}),
                                    .got = value,
                                    .hint = std::string(row->hint)});
  }
}

}  // namespace peft
