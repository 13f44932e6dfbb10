// The one table of config fields: its names are those of the real LoraConfig of every PEFT version, and its verdicts
// hold. tests/config/config_fields_test.cpp asks the verbs themselves.
#include "config/peft_keys.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "peft/error.h"
#include "support/golden_text.h"
#include "support/telling_values.h"
#include "test_paths.h"

namespace peft::config {
namespace {

using Version = AdapterConfig::Version;

Version version_of(const std::string& text) {
  Version version;
  EXPECT_EQ(std::sscanf(text.c_str(), "%d.%d.%d", &version.major, &version.minor, &version.patch), 3) << text;
  return version;
}

// tools/real_peft/lora_config_fields.py
Json fields_by_version() {
  return Json::parse(testing::text_of(std::filesystem::path(PEFT_SOURCE_DIR) / "tests/config/lora_config_fields.json"));
}

TEST(ConfigFields, AreThoseOfTheRealLoraConfig) {
  const Json versions = fields_by_version();
  ASSERT_GE(versions.size(), 10U);
  EXPECT_TRUE(versions.contains("0.21.2")) << "the newest PEFT of this table";
  for (const auto& [version, fields] : versions.get_ref<const Json::object_t&>()) {
    std::set<std::string> theirs, ours;
    for (const auto& [field, value] : fields.get_ref<const Json::object_t&>()) theirs.insert(field);
    for (const PeftKey& row : config_keys()) {
      if (version_of(version) > row.before) ours.insert(std::string(row.key));
    }
    EXPECT_EQ(ours, theirs) << "PEFT " << version;
  }
}

TEST(ConfigFields, HaveTheDefaultsOfTheRealLoraConfig) {
  // Set by the class itself when it is made or saved.
  const std::set<std::string> given_later = {"peft_type", "peft_version", "runtime_config"};
  const Json versions = fields_by_version();
  const std::string newest = std::to_string(kNewestPeft.major) + "." + std::to_string(kNewestPeft.minor) + "." +
                             std::to_string(kNewestPeft.patch);
  for (const auto& [field, value] : versions.at(newest).get_ref<const Json::object_t&>()) {
    if (given_later.contains(field)) continue;
    const PeftKey* row = find_peft_key(field);
    ASSERT_NE(row, nullptr) << field;
    EXPECT_EQ(Json::parse(row->value), value) << field;
  }
}

TEST(ConfigFields, EveryRowIsWhole) {
  std::set<std::string_view> seen;
  for (const PeftKey& row : config_keys()) {
    EXPECT_TRUE(seen.insert(row.key).second) << row.key;
    EXPECT_FALSE(row.what.empty()) << row.key;
    EXPECT_EQ(row.refused.empty(), row.why.empty()) << row.key << ": a reason where it is refused, and only there";
    EXPECT_EQ(row.refused.empty(), row.hint.empty()) << row.key;
    EXPECT_TRUE((row.used & row.refused).empty()) << row.key;
    EXPECT_FALSE(row.refused.contains(Verb::inspect)) << row.key << ": inspect shows everything";
    // What another verb would make of a file that convert refuses is no better.
    if (row.refused.contains(Verb::convert)) {
      for (const Verb verb : {Verb::verify, Verb::merge, Verb::combine, Verb::resize, Verb::run}) {
        EXPECT_TRUE(row.refused.contains(verb)) << row.key;
      }
    }
  }
}

AdapterConfig config_with(std::string_view key, const std::string& value) {
  std::string text = R"({"peft_type": "LORA", "target_modules": ["q_proj"]})";
  AdapterConfig config = AdapterConfig::parse(text, "adapter_config.json");
  config.set(key, value);
  return config;
}

bool is_refused(const AdapterConfig& config, Verb verb, std::string_view key) {
  try {
    require_usable(config, verb);
    return false;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::CF_UNSUP);
    EXPECT_EQ(error.detail().tensor, key);
    EXPECT_EQ(error.detail().file, "adapter_config.json");
    EXPECT_FALSE(error.detail().hint.empty());
    return true;
  }
}

TEST(ConfigFields, ValuesThatTellAreRefusedAsTheTableSays) {
  for (const PeftKey& row : config_keys()) {
    const auto sample = testing::kTellingValues.find(row.key);
    ASSERT_NE(sample, testing::kTellingValues.end()) << row.key << ": tests/support/telling_values.h needs a value";
    EXPECT_TRUE(tells(row, Json::parse(sample->second))) << row.key;
    const AdapterConfig config = config_with(row.key, sample->second);
    for (const Verb verb : testing::kVerbs) {
      EXPECT_EQ(is_refused(config, verb, row.key), row.refused.contains(verb)) << row.key << ": " << names({verb});
    }
  }
}

TEST(ConfigFields, ValuesThatTellNothingAreNeverRefused) {
  for (const PeftKey& row : config_keys()) {
    if (row.refused.empty()) continue;
    std::vector<std::string> silent = {"null", "false"};
    if (row.tells == Tells::unless_empty) silent.insert(silent.end(), {"[]", "{}", "\"\"", "0"});
    for (const std::string& value : silent) {
      const AdapterConfig config = config_with(row.key, value);
      for (const Verb verb : testing::kVerbs) EXPECT_FALSE(is_refused(config, verb, row.key)) << row.key << value;
    }
  }
  // PEFT makes a config of defaults of {}: it is KaSA.
  EXPECT_TRUE(is_refused(config_with("kasa_config", "{}"), Verb::merge, "kasa_config"));
  EXPECT_TRUE(is_refused(config_with("alora_invocation_tokens", "[]"), Verb::merge, "alora_invocation_tokens"));
}

TEST(ConfigFields, AFieldOfAnotherProgramIsNoKeyOfPeft) {
  EXPECT_EQ(find_peft_key("lora_B_layout"), nullptr);
  EXPECT_TRUE(is_known_extra("lora_B_layout"));
  EXPECT_TRUE(is_known_extra("enable_lora"));
  EXPECT_TRUE(is_known_extra("peft_cpp_lora_dropout"));
  EXPECT_FALSE(is_known_extra("r"));
  EXPECT_FALSE(is_known_extra("lora_aplha"));
}

}  // namespace
}  // namespace peft::config
