#include "peft/targets.h"

#include <gtest/gtest.h>

#include <iostream>
#include <set>

#include "model/golden_test_data.h"
#include "model/path.h"
#include "model/target_match.h"
#include "model/target_names.h"
#include "peft/error.h"

namespace peft {
namespace {

using model::OrderedJson;
using test::fs::path;
using Version = AdapterConfig::Version;

// Cases that test something outside of this project, with the reason.
const std::map<std::string, std::string> kSkipped = {
    {"loftq_missing", "PEFT fails because a Python package is missing"},
};

Version parse_version(const std::string& text) {
  Version version;
  std::sscanf(text.c_str(), "%d.%d.%d", &version.major, &version.minor, &version.patch);
  return version;
}

// The tree file of a model for the transformers version a case was made with.
std::optional<path> tree_for(const std::string& model_name, const std::string& transformers) {
  for (const path& file : test::golden_entries("config/models")) {
    const std::string name = file.filename().string();
    if (name.substr(0, name.find('.')) != model_name) continue;
    const OrderedJson json = test::read_json(file);
    for (const auto& version : json.at("transformers")) {
      if (version == transformers) return file;
    }
  }
  return std::nullopt;
}

const Model& cached_model(const path& file) {
  static std::map<std::string, Model> models;
  const auto found = models.find(file.string());
  return found != models.end() ? found->second
                               : models.emplace(file.string(), describe({.base = file.string()})).first->second;
}

// Expected modules and parameters by name; "experts.*." stands for every expert of the model.
std::map<std::string, OrderedJson> expected_targets(const OrderedJson& expected, const ModuleTree& tree) {
  std::map<std::string, OrderedJson> all;
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

void expect_targets(const std::vector<Target>& targets, const std::map<std::string, OrderedJson>& expected) {
  std::set<std::string> names, wanted;
  for (const Target& target : targets) names.insert(target.name);
  for (const auto& [name, target] : expected) wanted.insert(name);
  ASSERT_EQ(names, wanted);
  for (const Target& target : targets) {
    const OrderedJson& right = expected.at(target.name);
    EXPECT_EQ(target.rank, right.at("r")) << target.name;
    EXPECT_DOUBLE_EQ(target.scaling, right.at("scaling").get<double>()) << target.name;
    EXPECT_EQ(target.a, test::shape_of(right.at("A"))) << target.name;
    EXPECT_EQ(target.b, test::shape_of(right.at("B"))) << target.name;
    EXPECT_EQ(target.key, right.contains("key") ? right.at("key").get<std::string>() : target.name);
    EXPECT_EQ(target.parameter, right.contains("key")) << target.name;
  }
}

OrderedJson json_of(const NamesOrPattern& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* names = std::get_if<std::vector<std::string>>(&value)) return *names;
  return nullptr;
}

OrderedJson json_of(const PatternMap& patterns) {
  OrderedJson json = OrderedJson::object();
  for (const auto& [pattern, number] : patterns) {
    if (number.integer) {
      json[pattern] = static_cast<std::int64_t>(number.value);
    } else {
      json[pattern] = number.value;
    }
  }
  return json;
}

void expect_config_after(const AdapterConfig& config, const OrderedJson& expected) {
  EXPECT_EQ(json_of(config.target_modules), expected.at("target_modules"));
  EXPECT_EQ(config.target_parameters ? OrderedJson(*config.target_parameters) : OrderedJson(nullptr),
            expected.at("target_parameters"));
  EXPECT_EQ(json_of(config.exclude_modules), expected.at("exclude_modules"));
  EXPECT_EQ(config.modules_to_save ? OrderedJson(*config.modules_to_save) : OrderedJson(nullptr),
            expected.at("modules_to_save"));
  EXPECT_EQ(config.r, expected.at("r"));
  EXPECT_EQ(config.lora_alpha.value, expected.at("lora_alpha").get<double>());
  EXPECT_EQ(json_of(config.rank_pattern), expected.at("rank_pattern"));
  EXPECT_EQ(json_of(config.alpha_pattern), expected.at("alpha_pattern"));
  EXPECT_EQ(config.fan_in_fan_out, expected.at("fan_in_fan_out").get<bool>());
}

// What changes when the config is saved, its patterns sorted, and read again.
void expect_after_reload(AdapterConfig config, const ModuleTree& tree, const Model& model, Generation g,
                         Version version, const OrderedJson& expected) {
  const ResolvedTargets before = resolve_targets(config, tree, model, g, version);
  const auto by_key = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::sort(config.rank_pattern.begin(), config.rank_pattern.end(), by_key);
  std::sort(config.alpha_pattern.begin(), config.alpha_pattern.end(), by_key);
  const ResolvedTargets after = resolve_targets(config, tree, model, g, version);
  std::vector<Target> changed;
  for (std::size_t i = 0; i < after.targets.size(); ++i) {
    if (after.targets[i].rank != before.targets[i].rank || after.targets[i].scaling != before.targets[i].scaling) {
      changed.push_back(after.targets[i]);
    }
  }
  if (expected.is_null()) {
    EXPECT_TRUE(changed.empty());
  } else {
    expect_targets(changed, expected_targets(expected, tree));
  }
}

// PEFT's exception classes, as we name them; the config reader names none.
void expect_error(const Error& error, const OrderedJson& expected) {
  const bool in_config = expected.contains("stage");  // refused by the config alone, here or by AdapterConfig
  if (error.code() != ErrorCode::CF_TARGET) {
    const std::set<ErrorCode> config_codes = {ErrorCode::CF_VALUE, ErrorCode::CF_RANK,  ErrorCode::CF_ALPHA,
                                              ErrorCode::CF_REGEX, ErrorCode::CF_UNSUP, ErrorCode::CF_FORM};
    EXPECT_TRUE(config_codes.contains(error.code())) << error.what();
    return;
  }
  const std::string python_class = expected.at("error").at("class").get<std::string>();
  EXPECT_EQ(in_config ? python_class : error.detail().got, python_class) << error.what();
}

// A config as PEFT was given it. In the file its keys are sorted, and for patterns the order counts.
AdapterConfig in_memory(OrderedJson config) {
  config["peft_type"] = "LORA";
  return AdapterConfig::parse(config.dump(), "case.json");
}

// Returns 1, or 0 when the model's tree is not among the golden data at hand.
int run_case(const path& folder, const std::string& version, const std::string& transformers, const std::string& file,
             bool from_file) {
  const path expected_file = folder / "expected" / file;
  const OrderedJson info = test::read_json(folder / "case.json");
  const auto tree_file = tree_for(info.at("model").get<std::string>(), transformers);
  if (!tree_file) return 0;
  const OrderedJson expected = test::read_json(expected_file);
  SCOPED_TRACE(folder.filename().string() + " " + version);
  const Model& model = cached_model(*tree_file);
  const Generation g = transformers.starts_with("4.") ? Generation::v4 : Generation::v5;
  // Granite in transformers 5.5 still has the modules of v4.
  const auto& tree = tree_file->filename().string().find(".v4-") != std::string::npos ? model.v4 : model.v5;
  const Version as_of = parse_version(version);
  const auto resolve = [&] {
    const AdapterConfig config =
        from_file ? AdapterConfig::read((folder / "adapter").string()) : in_memory(info.at("config"));
    const ResolvedTargets resolved = resolve_targets(config, *tree, model, g, as_of);
    ASSERT_FALSE(expected.contains("error")) << "resolved, but PEFT says " << expected.at("error");
    expect_targets(resolved.targets, expected_targets(expected, *tree));
    expect_config_after(resolved.config_after, expected.at("config_after"));
    EXPECT_EQ(OrderedJson(resolved.modules_to_save), expected.value("modules_to_save", OrderedJson::array()));
    const OrderedJson reloaded = expected.contains("after_reload") ? expected.at("after_reload") : OrderedJson(nullptr);
    expect_after_reload(config, *tree, model, g, as_of, reloaded);
  };
  try {
    resolve();
  } catch (const Error& error) {
    EXPECT_TRUE(expected.contains("error")) << error.what();
    if (expected.contains("error")) expect_error(error, expected);
  }
  return 1;
}

TEST(ResolveTargets, GoldenResolveCases) {
  int cases = 0;
  for (const path& folder : test::golden_entries("config/resolve")) {
    if (const auto skipped = kSkipped.find(folder.filename().string()); skipped != kSkipped.end()) {
      std::cout << "skipped " << skipped->first << ": " << skipped->second << "\n";
      continue;
    }
    const OrderedJson info = test::read_json(folder / "case.json");
    for (const auto& [version, transformers] : info.at("producers").items()) {
      cases += run_case(folder, version, transformers.get<std::string>(), "targets_" + version + ".json", false);
    }
  }
  EXPECT_GT(cases, 0) << "no golden data at " << test::golden();
  std::cout << cases << " resolve cases\n";
}

TEST(ResolveTargets, GoldenMigrateCasesOnTheirOwnModel) {
  int cases = 0;
  for (const path& folder : test::golden_entries("config/migrate")) {
    const OrderedJson info = test::read_json(folder / "case.json");
    const std::string v4 = "targets_v4_0.18.1.json";
    if (test::fs::exists(folder / "expected" / v4)) {
      cases += run_case(folder, "0.18.1", info.at("producers").at("0.18.1").get<std::string>(), v4, true);
    }
    if (info.at("origin") != "v5") continue;
    for (const auto& [version, transformers] : info.at("producers").items()) {
      const std::string file = "targets_" + version + ".json";
      if (version == "0.18.1" || !test::fs::exists(folder / "expected" / file)) continue;
      cases += run_case(folder, version, transformers.get<std::string>(), file, true);
    }
  }
  EXPECT_GT(cases, 0) << "no golden data at " << test::golden();
  std::cout << cases << " migrate cases\n";
}

TEST(ResolveTargets, WarnsAboutWhatMatchesNothing) {
  const auto tree = tree_for("llama", "5.24.0");
  if (!tree) GTEST_SKIP();
  const AdapterConfig config = AdapterConfig::parse(
      R"({"peft_type": "LORA", "target_modules": ["q_proj", "nope"], "exclude_modules": ["gone"], "target_parameters": ["no.weight"],
          "rank_pattern": {"q_proj": 4, "layers.0.self_attn.q_proj": 6, "zzz": 3}})",
      "test");
  const ResolvedTargets resolved =
      resolve_targets(config, *cached_model(*tree).v5, cached_model(*tree), Generation::v5);
  std::string warnings;
  for (const std::string& warning : resolved.warnings) warnings += warning + "\n";
  for (const char* part : {"\"nope\" matches nothing", "exclude_modules matches nothing",
                           "\"no.weight\" matches nothing", "rank_pattern: \"zzz\"", "the other one decides"}) {
    EXPECT_NE(warnings.find(part), std::string::npos) << part << " in:\n" << warnings;
  }
}

// Up to 0.19.1 the last number of a path was the layer: of an expert's module, the expert.
TEST(TargetMatcher, LayerIndexByVersion) {
  AdapterConfig config;
  config.target_modules = std::vector<std::string>{"w1"};
  config.layers_to_transform = {{1}};
  const auto wanted = [&](const Version& version, const char* name) {
    return model::TargetMatcher(config, version).check(name).answer == model::TargetMatcher::Answer::yes;
  };
  const Version old{0, 19, 1}, recent{0, 20, 0};
  EXPECT_TRUE(wanted(old, "model.layers.0.moe.experts.1.w1"));
  EXPECT_FALSE(wanted(recent, "model.layers.0.moe.experts.1.w1"));
  EXPECT_FALSE(wanted(old, "model.layers.1.moe.experts.0.w1"));
  EXPECT_TRUE(wanted(recent, "model.layers.1.moe.experts.0.w1"));
  EXPECT_FALSE(wanted(recent, "layers.1.w1"));  // a layer needs two names in front
  EXPECT_TRUE(wanted(recent, "model.layers.01.w1"));
  config.layers_pattern = {"layers"};
  EXPECT_FALSE(wanted(old, "model.layers.0.moe.experts.1.w1"));
  EXPECT_TRUE(wanted(old, "model.layers.1.moe.experts.0.w1"));
}

TEST(Minimise, KeepsWhatMustBeToldApart) {
  const std::vector<model::Visit> modules = {{"a.0.q"}, {"a.0.k"}, {"a.1.q"}, {"b.0.q"}};
  EXPECT_EQ(model::minimise({"a.0.q", "a.1.q"}, modules), (std::vector<std::string>{"1.q", "a.0.q"}));
  EXPECT_EQ(model::minimise({"a.0.q", "a.1.q", "b.0.q"}, modules), std::vector<std::string>{"q"});
}

TEST(TrainableLine, CharacterForCharacter) {
  const path file = test::golden() / "config" / "trainable_line.json";
  EXPECT_EQ(trainable_line(294912, 124734720),
            "trainable params: 294,912 || all params: 124,734,720 || trainable%: 0.2364");
  if (!test::fs::exists(file)) return;
  for (const auto& row : OrderedJson::parse(model::read_text(file.string()))) {
    EXPECT_EQ(trainable_line(row.at("trainable").get<std::int64_t>(), row.at("all").get<std::int64_t>()) + "\n",
              row.at("stdout"));
  }
}

}  // namespace
}  // namespace peft
