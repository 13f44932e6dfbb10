// What a config selects on a module tree: names, ranks, scalings and shapes, as every PEFT version answered.
#include <algorithm>
#include <cstdio>
#include <set>

#include "peft/model.h"
#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

using Version = AdapterConfig::Version;

Version parse_version(const std::string& text) {
  Version version;
  std::sscanf(text.c_str(), "%d.%d.%d", &version.major, &version.minor, &version.patch);
  return version;
}

const Model& cached_model(const fs::path& file) {
  static std::map<std::string, Model> models;
  const auto found = models.find(file.string());
  if (found != models.end()) return found->second;
  DescribeOptions options;
  options.base = file.string();
  return models.emplace(file.string(), describe(options)).first->second;
}

// Expected modules and parameters by name; "experts.*." stands for every expert of the model.
std::map<std::string, Json> expected_targets(const Json& expected, const ModuleTree& tree) {
  std::map<std::string, Json> all;
  for (const char* list : {"modules", "parameters"}) {
    for (const auto& [name, target] : expected.at(list).items()) {
      const std::size_t star = name.find(".*.");
      if (star == std::string::npos) {
        all[name] = target;
        continue;
      }
      for (int expert = 0;; ++expert) {
        const std::string module = name.substr(0, star + 1) + std::to_string(expert) + name.substr(star + 2);
        if (tree.find(module) == nullptr) break;
        all[module] = target;
      }
    }
  }
  return all;
}

void compare_all_targets(const std::vector<Target>& targets, const std::map<std::string, Json>& expected) {
  std::set<std::string> names, wanted;
  for (const Target& target : targets) names.insert(target.name);
  for (const auto& [name, target] : expected) wanted.insert(name);
  require(names == wanted,
          fmt::format("expected LoRA on [{}], got [{}]", fmt::join(wanted, ", "), fmt::join(names, ", ")));
  using Shape = std::vector<std::int64_t>;
  for (const Target& target : targets) {
    const Json& right = expected.at(target.name);
    const bool is_parameter = right.contains("key");
    require(target.rank == right.at("r").get<std::int64_t>(), target.name + ": another rank");
    const double scaling = right.at("scaling").get<double>();
    require(std::abs(target.scaling - scaling) <= 4e-16 * std::abs(scaling), target.name + ": another scaling");
    require(target.a == right.at("A").get<Shape>(), target.name + ": another shape of lora_A");
    require(target.b == right.at("B").get<Shape>(), target.name + ": another shape of lora_B");
    require(target.parameter == is_parameter, target.name + ": a module taken for a parameter, or the reverse");
    require(target.key == (is_parameter ? right.at("key").get<std::string>() : target.name),
            target.name + ": another key");
  }
}

Json json_of(const NamesOrPattern& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* names = std::get_if<std::vector<std::string>>(&value)) return *names;
  return nullptr;
}

Json json_of(const PatternMap& patterns) {
  Json json = Json::object();
  for (const auto& [pattern, number] : patterns) {
    json[pattern] = number.integer ? Json(static_cast<std::int64_t>(number.value)) : Json(number.value);
  }
  return json;
}

Json json_of(const std::optional<std::vector<std::string>>& names) { return names ? Json(*names) : Json(nullptr); }

void compare_config_after(const AdapterConfig& config, const Json& expected) {
  const Json got = {{"target_modules", json_of(config.target_modules)},
                    {"target_parameters", json_of(config.target_parameters)},
                    {"exclude_modules", json_of(config.exclude_modules)},
                    {"modules_to_save", json_of(config.modules_to_save)},
                    {"r", config.r},
                    {"lora_alpha", config.lora_alpha.value},
                    {"rank_pattern", json_of(config.rank_pattern)},
                    {"alpha_pattern", json_of(config.alpha_pattern)},
                    {"fan_in_fan_out", config.fan_in_fan_out}};
  for (const auto& [key, value] : got.items()) {
    require(value == expected.at(key),
            fmt::format("{} after injection: expected {}, got {}", key, expected.at(key).dump(), value.dump()));
  }
}

// Where a case's config is applied: a model as one PEFT version saw it.
struct Scene {
  const Model& model;
  const ModuleTree& tree;
  Generation generation;
  Version version;

  ResolvedTargets resolve(const AdapterConfig& config) const {
    return resolve_targets(config, tree, model, generation, version);
  }
};

// What changes when the config is saved, its patterns sorted, and read again.
void compare_after_reload(AdapterConfig config, const Scene& scene, const Json& expected) {
  const ResolvedTargets before = scene.resolve(config);
  const auto by_key = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::sort(config.rank_pattern.begin(), config.rank_pattern.end(), by_key);
  std::sort(config.alpha_pattern.begin(), config.alpha_pattern.end(), by_key);
  const ResolvedTargets after = scene.resolve(config);
  std::vector<Target> changed;
  for (std::size_t i = 0; i < after.targets.size(); ++i) {
    const Target &old = before.targets[i], &now = after.targets[i];
    if (now.rank != old.rank || now.scaling != old.scaling) changed.push_back(now);
  }
  compare_all_targets(changed,
                      expected.is_null() ? std::map<std::string, Json>() : expected_targets(expected, scene.tree));
}

// PEFT's exception classes, as we name them; the config reader names none.
void compare_error(const Error& error, const Json& expected) {
  static const std::set<ErrorCode> config_codes = {ErrorCode::CF_VALUE, ErrorCode::CF_RANK,  ErrorCode::CF_ALPHA,
                                                   ErrorCode::CF_REGEX, ErrorCode::CF_UNSUP, ErrorCode::CF_FORM};
  require(expected.contains("error"), fmt::format("PEFT takes this config, we do not: {}", error.what()));
  if (error.code() != ErrorCode::CF_TARGET) {
    require(config_codes.contains(error.code()), fmt::format("an error of another kind: {}", error.what()));
    return;
  }
  const auto python_class = expected.at("error").at("class").get<std::string>();
  const bool in_config = expected.contains("stage");  // refused by the config alone: by us perhaps on the model
  require(in_config || error.detail().python_error == python_class,
          fmt::format("PEFT raises {}, we say: {}", python_class, error.what()));
}

// One PEFT version's answer. `file`: below expected/.
void check_version(const Case& c, const fs::path& root, const std::string& version, const std::string& file,
                   bool from_file) {
  const auto transformers = c.json.at("producers").at(version).get<std::string>();
  const fs::path tree_file = tree_file_of(root, c.json.at("model").get<std::string>(), transformers);
  const Json expected = read_json(c.folder / "expected" / file);
  const Model& model = cached_model(tree_file);
  // Granite in transformers 5.5 still has the modules of v4.
  const bool is_v4_tree = tree_file.filename().string().find(".v4-") != std::string::npos;
  const Scene scene{model, is_v4_tree ? *model.v4 : *model.v5,
                    transformers.starts_with("4.") ? Generation::v4 : Generation::v5, parse_version(version)};
  try {
    // A config as PEFT was given it: in the file its keys are sorted, and for patterns the order counts.
    Json given = c.json.at("config");
    given["peft_type"] = "LORA";
    const AdapterConfig config = from_file ? AdapterConfig::read((c.folder / "adapter").string())
                                           : AdapterConfig::parse(given.dump(), "case.json");
    const ResolvedTargets resolved = scene.resolve(config);
    require(!expected.contains("error"), "resolved, but PEFT says " + expected.value("error", Json()).dump());
    compare_all_targets(resolved.targets, expected_targets(expected, scene.tree));
    compare_config_after(resolved.config_after, expected.at("config_after"));
    require(Json(resolved.modules_to_save) == expected.value("modules_to_save", Json::array()),
            "another modules_to_save");
    compare_after_reload(config, scene, expected.value("after_reload", Json(nullptr)));
  } catch (const Error& error) {
    compare_error(error, expected);
  }
}

void check_named_version(const Case& c, const fs::path& root, const std::string& version, const std::string& file,
                         bool from_file) {
  try {
    check_version(c, root, version, file, from_file);
  } catch (const std::exception& error) {
    throw Failure(fmt::format("PEFT {}: {}", version, error.what()));
  }
}

}  // namespace

void check_resolve(const Case& c, const fs::path& root) {
  for (const auto& [version, transformers] : c.json.at("producers").items()) {
    check_named_version(c, root, version, "targets_" + version + ".json", false);
  }
}

void check_own_targets(const Case& c, const fs::path& root) {
  for (const auto& [version, transformers] : c.json.at("producers").items()) {
    const bool is_v4 = version == "0.18.1";
    const std::string file = is_v4 ? "targets_v4_0.18.1.json" : "targets_" + version + ".json";
    if (!is_v4 && c.json.at("origin") != "v5") continue;  // a config for v4: that model is another one
    if (fs::exists(c.folder / "expected" / file)) check_named_version(c, root, version, file, true);
  }
}

void check_trainable_line(const Case& c, const fs::path&) {
  const std::string got =
      trainable_line(c.json.at("trainable").get<std::int64_t>(), c.json.at("all").get<std::int64_t>());
  require(got + "\n" == c.json.at("stdout"), fmt::format("expected {}, got {}", c.json.at("stdout").dump(), got));
}

}  // namespace peft::testing
