// adapter_config.json of every PEFT version, read without loss and written in PEFT's own form.
// Field meanings and defaults are PEFT's (LoraConfig); see docs/config.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace peft {

// A JSON number that remembers how it was written: 5 and 5.0 are different files.
struct Number {
  double value = 0;
  bool integer = true;
  bool operator==(const Number&) const = default;
};

// target_modules, exclude_modules: null, a Python regular expression (or "all-linear"), or a list of names.
using NamesOrPattern = std::variant<std::monostate, std::string, std::vector<std::string>>;
using PatternMap = std::vector<std::pair<std::string, Number>>;  // rank_pattern, alpha_pattern, in file order

struct AdapterConfig {
  // What LoRA needs. A key that is absent has PEFT's default (and is not in `present`).
  std::string peft_type = "LORA";
  std::optional<std::string> task_type, peft_version, base_model_name_or_path, revision;
  std::int64_t r = 8;
  Number lora_alpha{8, true};
  double lora_dropout = 0;
  NamesOrPattern target_modules, exclude_modules;
  std::optional<std::vector<std::string>> target_parameters, modules_to_save;
  std::optional<std::vector<std::int64_t>> layers_to_transform;  // an int becomes a list of one
  bool layers_to_transform_is_int = false;
  std::optional<std::vector<std::string>> layers_pattern;  // a string becomes a list of one
  PatternMap rank_pattern, alpha_pattern;
  bool fan_in_fan_out = false, use_rslora = false, use_dora = false, lora_bias = false;
  std::string bias = "none";               // none, all, lora_only
  std::string init_lora_weights = "true";  // "true", "false", or the string
  // trainable_token_indices: null; {"": ids} for a list; {module: ids} for an object
  std::optional<std::vector<std::pair<std::string, std::vector<std::int64_t>>>> trainable_token_indices;
  std::string lora_B_layout;  // Unsloth's marker: "", rank_major, grouped_by_expert

  std::string file;                  // where it came from, for messages
  std::vector<std::string> present;  // keys the file has, in file order
  std::vector<std::string>
      unknown;       // keys no PEFT version wrote whose value is not null, false or empty (all are kept)
  std::string json;  // the file's own text; dump() starts from it, so that nothing is lost

  // Throws CF_* for anything PEFT would refuse in the config alone; the message tells PEFT's reason.
  static AdapterConfig read(const std::string& path);  // a file, or a folder that has one
  static AdapterConfig parse(std::string_view text, const std::string& file);

  // The file PEFT would write: keys sorted, indent 2, non-ASCII escaped, no final newline. All keys of `json`
  // and the fields above. target_modules and exclude_modules, sets in PEFT, are sorted when they were changed.
  std::string dump() const;

  // PEFT's version that wrote the file, as (major, minor, patch); absent before 0.18. Keys the named version
  // cannot have written outweigh it (keys_by_version.json): then the lowest version that fits.
  struct Version {
    int major = 0, minor = 0, patch = 0;
    auto operator<=>(const Version&) const = default;
  };
  std::optional<Version> stated_version() const;
  std::pair<Version, std::string> likely_version() const;  // and the evidence, in words

  // Rank, alpha and scale of a module or parameter name (no base_model.model. prefix), with PEFT's
  // precedence: the first pattern in file order whose ^(.*\.)?(KEY)$ matches.
  std::int64_t rank_for(std::string_view name) const;
  double alpha_for(std::string_view name) const;
  double scale_for(std::string_view name, std::int64_t rank) const;  // alpha / rank, or alpha / sqrt(rank)

  // Other values of the file, as JSON text; "" when absent. For keys without a field above.
  std::string value(std::string_view key) const;
  void set(std::string_view key, std::string_view json_value);  // replaces or adds
  void erase(std::string_view key);
  // Removes keys that `version` does not know and that have their default value; others stay (PEFT warns and ignores
  // them).
  void drop_keys_newer_than(const Version& version);
};

// What is done with an adapter. For each a field of the config is used, changes nothing, or is refused: the table is
// docs/config_fields.md.
enum class Verb : std::uint8_t {
  inspect,
  targets,
  convert,
  verify,
  merge,
  combine,
  resize,
  run,     // on a model that runs: logits, generate, train
  create,  // a new adapter on a model that runs
};
// Throws CF_UNSUP for the first field whose value says that `verb` cannot do it right.
void require_usable(const AdapterConfig& config, Verb verb);

// A line diff of two texts, for --config-only: "-" removed, "+" added, " " same.
std::string diff(std::string_view before, std::string_view after);

}  // namespace peft
