// What the verbs do with an adapter whose config says something special: for every field of the table, each verb itself
// is asked, on a real adapter and its base.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "config/peft_keys.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "peft/model.h"
#include "peft/verbs.h"
#include "support/golden.h"
#include "support/telling_values.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

// Options with one member set, all others as they are by default.
ConvertOptions convert_to(Layout to, const InputOptions& input) {
  ConvertOptions options;
  options.input = input, options.to = to;
  return options;
}

template <class Options>
Options with_input(const InputOptions& input) {
  Options options;
  options.input = input;
  return options;
}

VerifyOptions verify_with(const InputOptions& input) {
  VerifyOptions options;
  options.a = options.b = input;
  return options;
}

class ConfigFields : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ = (golden_root() / "models" / "rt-llama").string();
    source_ = golden_root() / "runtime" / "llama" / "adapter";
    if (!fs::exists(source_)) GTEST_SKIP() << "no golden data";
    fs::copy(source_, folder_ / "adapter");
    adapter_ = folder_ / "adapter";
    input_.base = base_;
  }

  // The adapter says `value`.
  void say(std::string_view key, const std::string& value) {
    AdapterConfig config = AdapterConfig::read(source_.string());
    if (key == "layers_pattern") config.set("layers_to_transform", "[0, 1]");  // PEFT refuses one without the other
    config.set(key, value);
    write_file(fs::path(adapter_) / "adapter_config.json", config.dump());
  }

  void ask(Verb verb) {
    InputOptions input = input_;
    input.read.verb = verb;
    const std::vector<WeightedAdapter> weighted = {{adapter_, 0.5}};
    MergeOptions merge;
    auto resized = with_input<ResizeOptions>(input_);
    switch (verb) {
      case Verb::inspect:
        (void)inspect(adapter_, input_);
        return;
      case Verb::convert:
        (void)plan_convert(load(adapter_, input), convert_to(Layout::peft_fused, input));
        return;
      case Verb::verify:
        (void)verify(adapter_, adapter_, verify_with(input_));
        return;
      case Verb::merge:
        merge.base = base_, merge.adapters = {{adapter_, 1}};
        (void)plan_merge(merge);
        return;
      case Verb::combine:
        (void)plan_combine(weighted, with_input<CombineOptions>(input_));
        return;
      case Verb::resize:
        resized.rank = 2;
        (void)plan_resize(adapter_, resized);
        return;
      default:
        require_usable(AdapterConfig::read(adapter_), verb);  // their own tests: command_test, tests/nn
    }
  }

  Model describe_base() const {
    DescribeOptions options;
    options.base = base_;
    return describe(options);
  }

  std::string code_of(Verb verb, std::string* field = nullptr) {
    try {
      ask(verb);
      return "";
    } catch (const Error& error) {
      if (field != nullptr) *field = error.detail().tensor;
      return std::string(info(error.code()).name);
    }
  }

  TemporaryFolder folder_;
  fs::path source_;
  std::string base_, adapter_;
  InputOptions input_;
};

TEST_F(ConfigFields, EveryVerbDoesWithEachWhatTheTableSays) {
  // Their tensors are missing here, so some verbs find another fault; never the field itself.
  const std::set<std::string_view> need_tensors = {"use_dora", "lora_bias", "trainable_token_indices",
                                                   "modules_to_save"};
  for (const config::PeftKey& row : config::config_keys()) {
    say(row.key, kTellingValues.find(row.key)->second);
    for (const Verb verb : kVerbs) {
      std::string field;
      const std::string code = code_of(verb, &field), what = std::string(row.key) + ": " + config::names({verb});
      if (row.refused.contains(verb)) {
        EXPECT_EQ(code, "CF_UNSUP") << what;
        EXPECT_EQ(field, row.key) << what;
      } else if (need_tensors.contains(row.key)) {
        EXPECT_NE(code, "CF_UNSUP") << what;
      } else {
        EXPECT_EQ(code, "") << what << " " << field;
      }
    }
  }
}

// The field stays in the config, and verify finds it gone.
TEST_F(ConfigFields, ConvertKeepsWhatOnlyTheConfigSaysAndVerifyComparesIt) {
  InputOptions input = input_;
  input.read.verb = Verb::convert;
  for (const std::string key : {"alora_invocation_tokens", "layer_replication", "arrow_config"}) {
    say(key, kTellingValues.at(key));
    const TemporaryFolder out;
    for (const Layout to : {Layout::peft_fused, Layout::peft_per_expert}) {
      const Plan plan = plan_convert(load(adapter_, input), convert_to(to, input));
      execute(plan, out / std::string(info(to).name), {.threads = 1, .sync = false});
      const AdapterConfig written = AdapterConfig::read(out / std::string(info(to).name));
      EXPECT_EQ(Json::parse(written.value(key)), Json::parse(kTellingValues.at(key)));
      EXPECT_TRUE(verify(adapter_, out / std::string(info(to).name), verify_with(input_)).same);
    }
    const VerifyReport report = verify(source_.string(), adapter_, verify_with(input_));
    EXPECT_FALSE(report.same) << key;
    ASSERT_EQ(report.num_differences, 1) << key;
    EXPECT_EQ(report.differences[0].name, key);
    EXPECT_NE(report.differences[0].what.find("null in the first config"), std::string::npos);
    // A value that says nothing is no difference.
    say(key, "null");
    EXPECT_TRUE(verify(source_.string(), adapter_, verify_with(input_)).same);
  }
}

TEST_F(ConfigFields, InspectShowsTheFieldAndWhatRefusesIt) {
  for (const config::PeftKey& row : config::config_keys()) {
    const config::Verbs refused = row.refused & config::Verbs{Verb::merge, Verb::run};
    say(row.key, kTellingValues.find(row.key)->second);
    const InspectReport report = inspect(adapter_, input_);
    const auto about = std::ranges::find_if(
        report.anomalies, [&](const std::string& line) { return line.starts_with(std::string(row.key) + " = "); });
    EXPECT_EQ(about != report.anomalies.end(), !refused.empty()) << row.key;
    if (about == report.anomalies.end()) continue;
    EXPECT_NE(about->find(row.why), std::string::npos) << *about;
    EXPECT_NE(about->find("; refused by "), std::string::npos) << *about;
    EXPECT_EQ(about->find("merge") != std::string::npos,
              row.refused.contains(Verb::merge) || row.why.find("merge") != std::string::npos)
        << *about;
  }
}

// PEFT has these on modules only: what targets parameters would not load.
TEST_F(ConfigFields, WhatParametersCannotHaveHasNoFusedForm) {
  const fs::path experts = golden_root() / "convert" / "mixtral-plain" / "adapter";
  if (!fs::exists(experts)) GTEST_SKIP();
  for (const config::PeftKey& row : config::config_keys()) {
    if (row.on_parameters || row.refused.contains(Verb::convert)) continue;
    const TemporaryFolder folder;
    fs::copy(experts, folder / "adapter", fs::copy_options::recursive);
    AdapterConfig config = AdapterConfig::read(folder / "adapter");
    config.set(row.key, kTellingValues.find(row.key)->second);
    write_file(fs::path(folder / "adapter") / "adapter_config.json", config.dump());
    InputOptions input;
    input.family = "mixtral";
    input.read.verb = Verb::convert;
    const Input loaded = load(folder / "adapter", input);
    try {
      (void)plan_convert(loaded, convert_to(Layout::peft_fused, input));
      ADD_FAILURE() << row.key;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM) << row.key << error.what();
      EXPECT_NE(error.detail().problem.find(row.key), std::string::npos) << error.what();
    }
    EXPECT_NO_THROW((void)plan_convert(loaded, convert_to(Layout::peft_per_expert, input))) << row.key;
  }
}

// Another method's config is told by its type, whatever its other fields hold.
TEST_F(ConfigFields, TheMethodIsJudgedFirst) {
  for (const std::string text : {R"({"alpha": null, "lora_alpha": null, "r": "x", "peft_type": "LOHA"})",
                                 R"({"bias": 7, "lora_alpha": "1", "peft_type": "ADALORA", "target_modules": 3})",
                                 R"({"r": 0, "peft_type": "IA3", "task_type": "CHAT"})",
                                 R"({"lora_alpha": [], "peft_type": "PROMPT_TUNING"})"}) {
    try {
      (void)AdapterConfig::parse(text, "adapter_config.json");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::CF_TYPE) << error.what();
    }
  }
}

TEST_F(ConfigFields, AnEmptyListExcludesNothingAndIsNotWarnedOf) {
  const Model model = describe_base();
  const auto warnings = [&](const std::string& value) {
    say("exclude_modules", value);
    return resolve_targets(AdapterConfig::read(adapter_), *model.v5, model, Generation::v5).warnings;
  };
  EXPECT_TRUE(warnings("[]").empty());
  EXPECT_TRUE(warnings("\"\"").empty());
  EXPECT_EQ(warnings("[\"no_such\"]").size(), 1U);
}

// What the real PEFT 0.21.2 saves: lora_A [r, in / nblocks] and lora_B [out, r / nblocks].
TEST_F(ConfigFields, TargetsShowsBlocksAsTheyAreStored) {
  const Model model = describe_base();
  const auto resolve = [&](const std::string& blocks, const std::string& rank = "4") {
    AdapterConfig config = AdapterConfig::read(source_.string());
    config.set("target_modules", R"(["o_proj", "q_proj"])");
    config.set("r", rank);
    config.set("use_bdlora", blocks);
    return resolve_targets(config, *model.v5, model, Generation::v5);
  };
  const ResolvedTargets plain = resolve("null");
  const ResolvedTargets blocks = resolve(kTellingValues.at("use_bdlora"));
  ASSERT_EQ(blocks.targets.size(), plain.targets.size());
  for (std::size_t i = 0; i < plain.targets.size(); ++i) {
    const Target &p = plain.targets[i], &b = blocks.targets[i];
    const bool o = p.name.ends_with("o_proj");
    EXPECT_EQ(b.a, (std::vector<std::int64_t>{4, p.a[1] / (o ? 2 : 1)})) << b.name;
    EXPECT_EQ(b.b, (std::vector<std::int64_t>{p.b[0], o ? 4 : 2})) << b.name;
  }
  const auto problem = [&](const std::string& value, const std::string& rank = "4") {
    try {
      (void)resolve(value, rank);
      return std::string();
    } catch (const Error& error) {
      return std::string(info(error.code()).name) + " " + error.detail().python_error;
    }
  };
  EXPECT_EQ(problem(R"({"target_modules_bd_a": ["o_proj"]})"), "CF_TARGET ValueError");  // q_proj is in neither list
  EXPECT_EQ(problem(R"({"target_modules_bd_a": ["o_proj"], "match_strict": false})"), "");
  EXPECT_EQ(problem(R"({"target_modules_bd_a": ["proj"], "target_modules_bd_b": ["q_proj"]})"), "CF_TARGET ValueError");
  EXPECT_EQ(problem(kTellingValues.at("use_bdlora"), "3"), "CF_TARGET ValueError");  // rank 3 in two blocks
  EXPECT_TRUE(problem(R"({"nblocks": 0})").starts_with("CF_VALUE"));
}

}  // namespace
}  // namespace peft::testing
