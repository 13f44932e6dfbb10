#include <gtest/gtest.h>

#include <map>

#include "model/targets/matcher.h"
#include "model/targets/names.h"
#include "peft/error.h"
#include "peft/model.h"
#include "support/model_files.h"

namespace peft {
namespace {

using model::OrderedJson;
using test::fs::path;
using Version = AdapterConfig::Version;

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

TEST(ResolveTargets, NamesTheModulesThatTheBaseHas) {
  const auto tree = tree_for("llama", "5.24.0");
  if (!tree) GTEST_SKIP();
  const AdapterConfig config = AdapterConfig::parse(R"({"peft_type": "LORA", "target_modules": ["c_attn"]})", "test");
  try {
    resolve_targets(config, *cached_model(*tree).v5, cached_model(*tree), Generation::v5);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.detail().hint,
              "the linear modules of the base are named q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, "
              "lm_head");
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
  EXPECT_EQ(trainable_line(294912, 124734720),
            "trainable params: 294,912 || all params: 124,734,720 || trainable%: 0.2364");
}

}  // namespace
}  // namespace peft
