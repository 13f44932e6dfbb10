// adapter_config.json: what PEFT wrote must read without loss and be written back byte for byte; what PEFT refuses is
// refused with the name of PEFT's exception.
#include "peft/config.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "peft/error.h"
#include "pythonic/python_json.h"
#include "pythonic/python_regex.h"
#include "support/error_of.h"
#include "support/golden_text.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using pythonic::Json;

AdapterConfig parse(const std::string& text) { return AdapterConfig::parse(text, "adapter_config.json"); }
// {"peft_type": "LORA", <text>}
AdapterConfig parse_with(const std::string& text) { return parse("{\"peft_type\": \"LORA\", " + text + "}"); }

using testing::error_of;

// The typed fields alone, as one text.
std::string fields_of(const AdapterConfig& config) {
  std::string text;
  for (const config::AdapterField& field : config::adapter_fields()) {
    text += std::string(field.key) + ": " + pythonic::dump_python(field.write(config), -1, false) + "\n";
  }
  return text;
}

std::vector<fs::path> config_files() {
  std::vector<fs::path> files;
  const fs::path root = testing::golden_folder();
  if (!fs::exists(root)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const bool written = entry.path().generic_string().find("config/written/") != std::string::npos;
    if (entry.path().filename() == "adapter_config.json" || (written && entry.path().extension() == ".json")) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// ---- files of the real programs
// --------------------------------------------------------------------------------------

// Every PEFT version tried writes keys sorted, indent 2. Tinker does not, nor does the script that rewrote the configs
// of quantised bases: their files keep their meaning, not their bytes.
bool is_written_by_peft(const std::string& name) {
  return name.find("consumers/tinker/") == std::string::npos && !name.starts_with("quant4/runtime-");
}

TEST(AdapterConfig, IsWrittenBackAsPeftWroteIt) {
  const fs::path root = testing::golden_folder();
  std::map<std::string, int> counts;
  for (const fs::path& file : config_files()) {
    const std::string name = file.lexically_relative(root).generic_string();
    const std::string text = testing::text_of(file);
    try {
      const AdapterConfig config = AdapterConfig::read(file.string());
      const std::string dumped = config.dump();
      EXPECT_EQ(nlohmann::json::parse(dumped), nlohmann::json::parse(text)) << name;
      EXPECT_TRUE(config.unknown.empty()) << name << " " << config.unknown.front();
      EXPECT_EQ(dumped == text, is_written_by_peft(name)) << name << "\n" << diff(text, dumped);
      ++counts[dumped == text ? "byte for byte" : "not sorted"];
    } catch (const Error& error) {
      ++counts[std::string(info(error.code()).name) + " " + error.detail().tensor];
    }
  }
  ASSERT_GE(counts["byte for byte"], 20);
  for (const auto& [what, count] : counts) std::cout << count << " " << what << "\n";
}

TEST(AdapterConfig, OnlyTheseGoldenFilesAreRefused) {
  const fs::path root = testing::golden_folder();
  const std::map<std::string, std::string> refused = {
      {"config/written/0.3.0/default.json", "CF_ALPHA"},  // lora_alpha null: 0.3.0 had no default
      {"config/resolve/bad_bias", "CF_VALUE"},
      {"config/resolve/bad_init", "CF_VALUE"},
      {"config/resolve/bad_task", "CF_VALUE"},
      {"config/resolve/dora_bias", "CF_VALUE"},
      {"config/resolve/loftq_missing", "CF_VALUE"},
      {"config/resolve/lora_bias_gaussian", "CF_VALUE"},
      {"config/resolve/orthogonal_odd", "CF_VALUE"},
      {"config/resolve/params_string", "CF_VALUE"},
      {"config/resolve/pattern_without_layers", "CF_VALUE"},
      {"config/resolve/r_negative", "CF_RANK"},
      {"config/resolve/r_zero", "CF_RANK"},
      {"config/resolve/rank_zero", "CF_RANK"},
      {"config/resolve/regex_invalid", "CF_REGEX"},
      {"config/resolve/str_and_layers", "CF_VALUE"},
      {"consumers/mlx_lm", "CF_TYPE"}};
  std::set<std::string> seen;
  for (const fs::path& file : config_files()) {
    const std::string name = file.lexically_relative(root).generic_string();
    std::string code;
    try {
      AdapterConfig::read(file.string());
    } catch (const Error& error) {
      code = info(error.code()).name;
    }
    const auto expected = std::find_if(refused.begin(), refused.end(), [&](const auto& row) {
      return name == row.first || name.starts_with(row.first + "/");
    });
    EXPECT_EQ(code, expected == refused.end() ? "" : expected->second) << name;
  }
}

// golden/config/resolve: where PEFT raises for the config alone, we do, and name its exception.
TEST(AdapterConfig, RefusesWhatPeftRefuses) {
  const fs::path root = testing::golden_folder() / "config";
  if (!fs::exists(root / "resolve")) GTEST_SKIP();
  int checked = 0;
  for (const auto& entry : fs::directory_iterator(root / "resolve")) {
    const fs::path expected_file = entry.path() / "expected" / "targets_0.21.2.json";
    const fs::path adapter = entry.path() / "adapter";
    if (!fs::exists(expected_file) || !fs::exists(adapter)) continue;
    const Json expected = Json::parse(testing::text_of(expected_file));
    if (expected.value("stage", "") != "config") continue;
    const Error error = error_of([&] { AdapterConfig::read(adapter.string()); });
    EXPECT_NE(error.detail().python_error.find(expected["error"]["class"].get<std::string>()), std::string::npos)
        << entry.path() << " " << error.what();
    EXPECT_NE(error.detail().problem, expected["error"]["message"].get<std::string>()) << "our own words";
    EXPECT_EQ(error.detail().file, (adapter / "adapter_config.json").string());
    ++checked;
  }
  EXPECT_GE(checked, 1);
}

TEST(AdapterConfig, KeysByVersion) {
  const fs::path file = testing::golden_folder() / "config" / "keys_by_version.json";
  ASSERT_TRUE(fs::exists(file));
  const Json golden = Json::parse(testing::text_of(file));
  const auto text = [](const AdapterConfig::Version& v) {
    return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  };
  const auto& versions = golden["versions"];
  ASSERT_EQ(config::peft_keys().size(), golden["keys"].size());
  EXPECT_EQ(text(config::kNewestPeft), versions.back());
  std::string last;
  for (const config::PeftKey& row : config::peft_keys()) {
    const std::string key(row.key);
    const Json& expected = golden["keys"][key];
    EXPECT_EQ(text(row.since), expected["since"]) << key;
    const auto at = std::find(versions.begin(), versions.end(), expected["since"]);
    EXPECT_EQ(text(row.before), at == versions.begin() ? Json("0.0.0") : *(at - 1)) << key;
    const Json& value = expected["default"];
    if (key != "peft_version") {
      EXPECT_EQ(Json::parse(row.value), value.is_array() ? value.back()[1] : value) << key;
    }
    EXPECT_LT(last, key);  // find_peft_key searches by halves
    last = key;
  }
}

TEST(AdapterConfig, LikelyVersionOfWhatEachVersionWrote) {
  const fs::path root = testing::golden_folder() / "config" / "written";
  if (!fs::exists(root)) GTEST_SKIP();
  const Json keys = Json::parse(testing::text_of(root.parent_path() / "keys_by_version.json"));
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string version = entry.path().filename().string();
    const auto got = AdapterConfig::read((entry.path() / "full.json").string()).likely_version().first;
    const std::string text =
        std::to_string(got.major) + "." + std::to_string(got.minor) + "." + std::to_string(got.patch);
    // Before 0.18 the keys alone tell: the first version with the same number of them.
    std::string expected = version;
    if (version < "0.18" || version.size() < 6) {
      for (const Json& other : keys["versions"]) {
        if (keys["count"][other.get<std::string>()] == keys["count"][version]) {
          expected = other;
          break;
        }
      }
    }
    EXPECT_EQ(text, expected);
  }
}

// ---- reading
// ---------------------------------------------------------------------------------------------------------

TEST(AdapterConfig, ReadsEveryField) {
  const AdapterConfig c = parse(R"({
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.21.2", "base_model_name_or_path": "x/y", "revision": "main",
    "r": 4, "lora_alpha": 7.5, "lora_dropout": 0.25, "target_modules": ["v", "q"], "exclude_modules": "a.*",
    "target_parameters": ["p"], "modules_to_save": ["head"], "layers_to_transform": 3, "layers_pattern": "layers",
    "rank_pattern": {"q": 2}, "alpha_pattern": {"z": 1, "a": 2.0}, "fan_in_fan_out": true, "use_rslora": true, "use_dora": true,
    "bias": "lora_only", "init_lora_weights": "pissa_niter_4", "trainable_token_indices": {"embed": [1, 2]},
    "lora_B_layout": "rank_major", "future": {"x": 1}, "off": null, "none": []})");
  EXPECT_EQ(c.task_type, "CAUSAL_LM");
  EXPECT_EQ(c.base_model_name_or_path, "x/y");
  EXPECT_EQ(c.revision, "main");
  EXPECT_EQ(c.r, 4);
  EXPECT_EQ(c.lora_alpha, (Number{7.5, false}));
  EXPECT_EQ(c.lora_dropout, 0.25);
  EXPECT_EQ(std::get<2>(c.target_modules), (std::vector<std::string>{"v", "q"}));
  EXPECT_EQ(std::get<1>(c.exclude_modules), "a.*");
  EXPECT_EQ(c.target_parameters, std::vector<std::string>{"p"});
  EXPECT_EQ(c.modules_to_save, std::vector<std::string>{"head"});
  EXPECT_EQ(c.layers_to_transform, std::vector<std::int64_t>{3});
  EXPECT_TRUE(c.layers_to_transform_is_int);
  EXPECT_EQ(c.layers_pattern, std::vector<std::string>{"layers"});
  EXPECT_EQ(c.rank_pattern, (PatternMap{{"q", {2, true}}}));
  EXPECT_EQ(c.alpha_pattern, (PatternMap{{"z", {1, true}}, {"a", {2, false}}}));  // file order, not sorted
  EXPECT_TRUE(c.fan_in_fan_out && c.use_rslora && c.use_dora && !c.lora_bias);
  EXPECT_EQ(c.bias, "lora_only");
  EXPECT_EQ(c.init_lora_weights, "pissa_niter_4");
  EXPECT_EQ(c.trainable_token_indices->at(0), (std::pair<std::string, std::vector<std::int64_t>>("embed", {1, 2})));
  EXPECT_EQ(c.lora_B_layout, "rank_major");
  EXPECT_EQ(c.unknown, std::vector<std::string>{"future"});  // null, false and empty values say nothing
  EXPECT_EQ(c.present.front(), "peft_type");
  EXPECT_EQ(c.present.size(), 26U);
  EXPECT_EQ(c.value("future"), R"({"x": 1})");
  EXPECT_EQ(c.value("absent"), "");
}

TEST(AdapterConfig, AnAbsentKeyHasPeftsDefault) {
  const AdapterConfig c = parse(R"({"peft_type": "LORA"})");
  EXPECT_EQ(c.r, 8);
  EXPECT_EQ(c.lora_alpha, (Number{8, true}));
  EXPECT_TRUE(std::holds_alternative<std::monostate>(c.target_modules));
  EXPECT_EQ(c.init_lora_weights, "true");
  EXPECT_EQ(c.present, std::vector<std::string>{"peft_type"});
  EXPECT_EQ(fields_of(c), fields_of(AdapterConfig()));
}

struct BadValue {
  std::string text;  // beside peft_type
  ErrorCode code;
  std::string key, got;  // got: part of it
};

TEST(AdapterConfig, BadValuesNameKeyAndValue) {
  using enum ErrorCode;
  const BadValue cases[] = {
      {R"("r": 0)", CF_RANK, "r", "0 (PEFT raises ValueError)"},
      {R"("r": -1)", CF_RANK, "r", "-1 (PEFT raises ValueError)"},
      {R"("r": 1000000000)", CF_RANK, "r", "1000000000"},
      {R"("r": 18446744073709551615)", CF_RANK, "r", "18446744073709551615"},
      {R"("r": 123456789012345678901234567890)", CF_RANK, "r", "123456789012345678901234567890"},
      {R"("r": "8")", CF_RANK, "r", "\"8\""},
      {R"("r": 8.0)", CF_RANK, "r", "8.0"},
      {R"("r": true)", CF_RANK, "r", "true"},
      {R"("r": null)", CF_RANK, "r", "null"},
      {R"("r": [8])", CF_RANK, "r", "[8]"},
      {R"("r": NaN)", CF_RANK, "r", "NaN"},
      {R"("rank_pattern": {"q_proj": 0})", CF_RANK, "rank_pattern.q_proj", "0"},
      {R"("rank_pattern": {"q_proj": 2.5})", CF_RANK, "rank_pattern.q_proj", "2.5"},
      {R"("rank_pattern": {"q_proj": Infinity})", CF_RANK, "rank_pattern.q_proj", "Infinity"},
      {R"("rank_pattern": [])", CF_VALUE, "rank_pattern", "[]"},
      {R"("lora_alpha": NaN)", CF_ALPHA, "lora_alpha", "NaN"},
      {R"("lora_alpha": -Infinity)", CF_ALPHA, "lora_alpha", "-Infinity"},
      {R"("lora_alpha": 1e400)", CF_ALPHA, "lora_alpha", "1e400"},
      {R"("lora_alpha": null)", CF_ALPHA, "lora_alpha", "null"},
      {R"("lora_alpha": "16")", CF_ALPHA, "lora_alpha", "\"16\""},
      {R"("lora_alpha": true)", CF_ALPHA, "lora_alpha", "true"},
      {R"("alpha_pattern": {"q": {}})", CF_ALPHA, "alpha_pattern.q", "{}"},
      {"\"lora_alpha\": 1" + std::string(400, '0'), CF_ALPHA, "lora_alpha", "1000"},
      {R"("lora_dropout": 1.5)", CF_VALUE, "lora_dropout", "1.5 (PEFT raises ValueError)"},
      {R"("lora_dropout": "0")", CF_VALUE, "lora_dropout", "\"0\""},
      {R"("lora_dropout": NaN)", CF_FORM, "lora_dropout", "NaN"},
      {R"("use_rslora": 1)", CF_VALUE, "use_rslora", "1"},
      {R"("use_dora": "false")", CF_VALUE, "use_dora", "\"false\""},
      {R"("target_modules": 3)", CF_VALUE, "target_modules", "3"},
      {R"("target_modules": ["q", 3])", CF_VALUE, "target_modules", "3"},
      {R"("target_parameters": "q.weight")", CF_VALUE, "target_parameters", "TypeError"},
      {R"("modules_to_save": "head")", CF_VALUE, "modules_to_save", "\"head\""},
      {R"("layers_to_transform": [true])", CF_VALUE, "layers_to_transform", "true"},
      {R"("layers_to_transform": 1.0)", CF_VALUE, "layers_to_transform", "1.0"},
      {R"("target_modules": "q", "layers_to_transform": 0)", CF_VALUE, "layers_to_transform", "ValueError"},
      {R"("target_modules": "q", "layers_pattern": "h")", CF_VALUE, "layers_pattern", "ValueError"},
      {R"("layers_pattern": ["h"])", CF_VALUE, "layers_pattern", "ValueError"},
      {R"("use_dora": true, "megatron_config": {"a": 1})", CF_VALUE, "use_dora", "ValueError"},
      {R"("lora_bias": true, "use_dora": true)", CF_VALUE, "lora_bias", "ValueError"},
      {R"("lora_bias": true, "init_lora_weights": "gaussian")", CF_VALUE, "lora_bias", "ValueError"},
      {R"("init_lora_weights": "loftq")", CF_VALUE, "loftq_config", "ValueError"},
      {R"("init_lora_weights": "true")", CF_VALUE, "init_lora_weights", "\"true\""},
      {R"("init_lora_weights": "orthogonal", "r": 3)", CF_VALUE, "r", "3 (PEFT raises ValueError)"},
      {R"("velora_config": 1)", CF_VALUE, "velora_config", "ValueError"},
      {R"("bias": "some")", CF_VALUE, "bias", "NotImplementedError"},
      {R"("task_type": "CHAT")", CF_VALUE, "task_type", "\"CHAT\" (PEFT raises ValueError)"},
      {R"("peft_version": 18)", CF_VALUE, "peft_version", "18"},
      {R"("trainable_token_indices": ["a"])", CF_VALUE, "trainable_token_indices", "\"a\""},
      {R"("target_modules": "(q")", CF_REGEX, "target_modules", "(q"},
      {R"("exclude_modules": "*q")", CF_REGEX, "exclude_modules", "*q"},
      {R"j("rank_pattern": {"(?<n>q)": 2})j", CF_REGEX, "rank_pattern", "(.*\\.)?((?<n>q))$"},
      {R"("alpha_pattern": {"[q": 2})", CF_REGEX, "alpha_pattern", "[q"},
      {R"("layers_pattern": "[", "layers_to_transform": 1)", CF_REGEX, "layers_pattern", "["},
      {R"j("modules_to_save": ["a)"])j", CF_REGEX, "modules_to_save", "a)"},
      {R"("r": 8, "r": 8)", CF_FORM, "r", ""},
      {R"("alpha_pattern": {"q": 1, "q": 2})", CF_FORM, "alpha_pattern.q", ""},
  };
  for (const BadValue& one : cases) {
    const Error error = error_of([&] { parse_with(one.text); });
    EXPECT_EQ(info(error.code()).name, info(one.code).name) << one.text;
    EXPECT_EQ(error.detail().tensor, one.key) << one.text;
    const std::string& python_error = error.detail().python_error;
    const std::string got = error.detail().got + (python_error.empty() ? "" : " (PEFT raises " + python_error + ")");
    EXPECT_NE(got.find(one.got), std::string::npos) << one.text << " got " << got;
    EXPECT_EQ(error.detail().file, "adapter_config.json") << one.text;
  }
}

// Rows 50 to 55 of the table of bad inputs (the others are decided by verbs, with value() and unknown).
TEST(AdapterConfig, BadFiles) {
  const std::pair<std::string, ErrorCode> cases[] = {
      {"", ErrorCode::CF_FORM},
      {"[]", ErrorCode::CF_FORM},
      {"\"LORA\"", ErrorCode::CF_FORM},
      {"{\"peft_type\": \"LORA\"", ErrorCode::CF_FORM},
      {"\xEF\xBB\xBF{\"peft_type\": \"LORA\"}", ErrorCode::CF_FORM},
      {"{}", ErrorCode::CF_TYPE},
      {R"({"peft_type": null})", ErrorCode::CF_TYPE},
      {R"({"peft_type": "IA3"})", ErrorCode::CF_TYPE},
      {R"({"peft_type": "LOHA"})", ErrorCode::CF_TYPE},
      {R"({"peft_type": "ADALORA"})", ErrorCode::CF_TYPE},
      {R"({"peft_type": "lora"})", ErrorCode::CF_TYPE},
      {R"({"fine_tune_type": "lora"})", ErrorCode::CF_TYPE},
  };
  for (const auto& [text, code] : cases) {
    const Error error = error_of([&, &t = text] { parse(t); });
    EXPECT_EQ(info(error.code()).name, info(code).name) << text;
    EXPECT_EQ(error.detail().file, "adapter_config.json");
  }
  const Error missing = error_of([] { AdapterConfig::read("/nowhere"); });
  EXPECT_EQ(missing.code(), ErrorCode::CF_FORM);
  EXPECT_EQ(missing.detail().file, "/nowhere");
  EXPECT_EQ(error_of([] { AdapterConfig::read("/tmp"); }).detail().file, "/tmp/adapter_config.json");
}

TEST(AdapterConfig, WhatPeftAcceptsIsAccepted) {
  for (const char* text :
       {R"("lora_alpha": 0)", R"("lora_alpha": -2.5)", R"("rank_pattern": null)", R"("use_rslora": null)",
        R"("target_modules": "All-Linear")", R"("lora_dropout": null)", R"("layers_pattern": "")",
        R"("layers_pattern": ["h"], "layers_to_transform": 0)", R"("init_lora_weights": "GAUSSIAN")",
        R"("exclude_modules": "(?=a)b")", R"("r": 1048576)", R"("modules_to_save": ["a.b"])",
        R"("rank_pattern": {"a)(b": 2})", R"("trainable_token_indices": [])"}) {
    EXPECT_NO_THROW(parse_with(text)) << text;
  }
}

// ---- versions
// --------------------------------------------------------------------------------------------------------

TEST(AdapterConfig, Versions) {
  using V = AdapterConfig::Version;
  const auto likely = [](const std::string& text) { return parse_with(text).likely_version(); };
  EXPECT_EQ(parse_with(R"("peft_version": "0.20.0.dev0@3f2a")").stated_version(), (V{0, 20, 0}));
  EXPECT_EQ(parse_with(R"("peft_version": "0.18")").stated_version(), (V{0, 18, 0}));
  EXPECT_EQ(parse_with(R"("peft_version": "UNKNOWN")").stated_version(), std::nullopt);
  EXPECT_EQ(parse_with(R"("peft_version": "99999999999.1.1")").stated_version(), std::nullopt);
  EXPECT_EQ(parse_with(R"("r": 8)").stated_version(), std::nullopt);

  EXPECT_EQ(likely(R"("peft_version": "0.18.1", "arrow_config": null)").first, (V{0, 18, 1}));
  EXPECT_EQ(likely(R"("peft_version": "0.18.0", "arrow_config": null)").first, (V{0, 18, 0}));  // 0.18.0 was not tried
  EXPECT_EQ(likely(R"("peft_version": "0.18.1", "kasa_config": null)").first, (V{0, 21, 2}));
  EXPECT_NE(likely(R"("peft_version": "0.18.1", "kasa_config": null)").second.find("kasa_config"), std::string::npos);
  EXPECT_EQ(likely(R"("target_parameters": null)").first, (V{0, 17, 0}));
  EXPECT_EQ(likely(R"("r": 8)").first, (V{0, 3, 0}));
}

TEST(AdapterConfig, DropsKeysThatAnOlderVersionDoesNotKnow) {
  AdapterConfig c = parse_with(R"("kasa_config": null, "use_bdlora": {"nblocks": 2}, "arrow_config": null, "r": 4)");
  c.drop_keys_newer_than({0, 18, 1});
  EXPECT_EQ(c.present, (std::vector<std::string>{"peft_type", "use_bdlora", "arrow_config", "r"}));
  EXPECT_EQ(c.value("use_bdlora"), R"({"nblocks": 2})");  // its value means something: PEFT warns, nobody loses it
  EXPECT_EQ(c.value("kasa_config"), "");
}

// ---- ranks, alphas, scales
// -------------------------------------------------------------------------------------------

TEST(AdapterConfig, TheFirstPatternOfTheFileWins) {
  const AdapterConfig c = parse_with(
      R"("r": 8, "lora_alpha": 16, "rank_pattern": {"layers.0.self_attn.q_proj": 64, "q_proj": 32, "^lm_head": 2, "w1|w3": 4},
         "alpha_pattern": {".*experts\\.\\d+\\.w[13]": 3.5, "w1": 9})");
  EXPECT_EQ(c.rank_for("model.layers.0.self_attn.q_proj"), 64);
  EXPECT_EQ(c.rank_for("model.layers.1.self_attn.q_proj"), 32);
  EXPECT_EQ(c.rank_for("q_proj"), 32);
  EXPECT_EQ(c.rank_for("xq_proj"), 8);
  EXPECT_EQ(c.rank_for("q_proj.x"), 8);
  EXPECT_EQ(c.rank_for("lm_head"), 2);
  EXPECT_EQ(c.rank_for("x.lm_head"), 8);
  EXPECT_EQ(c.rank_for("a.w3"), 4);
  EXPECT_EQ(c.alpha_for("m.experts.11.w1"), 3.5);
  EXPECT_EQ(c.alpha_for("m.dense.w1"), 9);
  EXPECT_EQ(c.alpha_for("other"), 16);
  EXPECT_EQ(c.scale_for("other", 8), 2);
  AdapterConfig rs = c;
  rs.use_rslora = true;
  EXPECT_DOUBLE_EQ(rs.scale_for("other", 4), 8);
  EXPECT_EQ(error_of([&] { c.scale_for("other", 0); }).code(), ErrorCode::CF_RANK);
}

// The short way for plain names decides as the regular expression does.
RC_GTEST_PROP(AdapterConfig, PlainNamesMatchAsTheirExpression, ()) {
  const auto text = rc::gen::container<std::string>(rc::gen::elementOf(std::string("aab_..1")));
  const std::string key = *text;
  std::string name =
      *text + *rc::gen::elementOf(std::vector<std::string>{"", key, "." + key, key + "\n", "\n" + key, "é" + key});
  RC_ASSERT(pythonic::is_plain_name(key));
  RC_ASSERT(pythonic::SuffixPattern(key).matches(name) == PythonRegex(pythonic::suffix_expression(key)).matches(name));
}

TEST(AdapterConfig, ThousandsOfNamesAsPatterns) {
  std::string patterns;
  for (int i = 0; i < 20'000; ++i) patterns += (i ? ", " : "") + ("\"layers." + std::to_string(i) + ".w1\": 4");
  const AdapterConfig c = parse_with("\"rank_pattern\": {" + patterns + "}");
  EXPECT_EQ(c.rank_for("model.layers.19999.w1"), 4);
  EXPECT_EQ(c.rank_for("model.layers.20000.w1"), 8);
  std::string expressions;
  for (int i = 0; i < 5'000; ++i) expressions += (i ? ", " : "") + ("\"w[1-3]\\\\.x" + std::to_string(i) + "\": 4");
  EXPECT_EQ(error_of([&] { parse_with("\"alpha_pattern\": {" + expressions + "}"); }).code(), ErrorCode::CF_VALUE);
}

// ---- writing
// ---------------------------------------------------------------------------------------------------------

TEST(AdapterConfig, OnlyChangedFieldsChangeTheFile) {
  AdapterConfig c = parse(
      R"({"zeta": 1.50, "peft_type": "LORA", "lora_alpha": 8.0, "lora_dropout": null, "target_modules": ["v", "q", "q"],
    "exclude_modules": null, "layers_pattern": "h", "layers_to_transform": [1], "big": 123456789012345678901234567890})");
  const std::string same = R"({
  "big": 123456789012345678901234567890,
  "exclude_modules": null,
  "layers_pattern": "h",
  "layers_to_transform": [
    1
  ],
  "lora_alpha": 8.0,
  "lora_dropout": null,
  "peft_type": "LORA",
  "target_modules": [
    "v",
    "q",
    "q"
  ],
  "zeta": 1.5
})";
  EXPECT_EQ(c.dump(), same);
  c.lora_alpha = {8, true};
  c.r = 16;
  c.lora_dropout = 0.1;
  c.target_modules = std::vector<std::string>{"v", "k", "v"};  // a set to PEFT
  const std::string changed = c.dump();
  EXPECT_EQ(diff(same, changed), R"( {
   "big": 123456789012345678901234567890,
   "exclude_modules": null,
   "layers_pattern": "h",
   "layers_to_transform": [
     1
   ],
-  "lora_alpha": 8.0,
-  "lora_dropout": null,
+  "lora_alpha": 8,
+  "lora_dropout": 0.1,
   "peft_type": "LORA",
+  "r": 16,
   "target_modules": [
-    "v",
-    "q",
-    "q"
+    "k",
+    "v"
   ],
   "zeta": 1.5
 }
)");
}

TEST(AdapterConfig, MadeInMemoryItHasTheKeysOfItsVersion) {
  AdapterConfig c;
  c.peft_version = "0.18.1";
  const fs::path file = testing::golden_folder() / "config" / "written" / "0.18.1" / "default.json";
  if (fs::exists(file)) {
    EXPECT_EQ(c.dump(), testing::text_of(file));
  }
  c.peft_version.reset();
  c.target_modules = std::vector<std::string>{"q_proj"};
  const AdapterConfig back = parse(c.dump());
  EXPECT_EQ(back.present.size(), config::peft_keys().size());
  EXPECT_EQ(fields_of(back), fields_of(c));
}

TEST(AdapterConfig, SetAndErase) {
  AdapterConfig c = parse_with(R"("auto_mapping": {"a": 1}, "r": 4)");
  c.set("note", R"({"b": [1, 2]})");
  c.set("auto_mapping", "null");
  c.set("r", "6");
  EXPECT_EQ(c.r, 6);
  EXPECT_EQ(c.value("note"), R"({"b": [1, 2]})");
  EXPECT_EQ(c.value("auto_mapping"), "null");
  EXPECT_EQ(c.unknown, std::vector<std::string>{"note"});
  EXPECT_EQ(parse(c.dump()).r, 6);
  c.alpha_pattern = {{"q", {2, true}}};  // not lost by a later set
  c.set("peft_cpp_note", "1");
  EXPECT_EQ(c.unknown, std::vector<std::string>{"note"});
  EXPECT_EQ(parse(c.dump()).alpha_pattern, c.alpha_pattern);
  c.erase("note");
  c.erase("r");
  c.erase("absent");
  EXPECT_EQ(c.r, 8);
  EXPECT_EQ(c.value("note"), "");
  EXPECT_EQ(c.dump().find("\"r\""), std::string::npos);
  EXPECT_EQ(error_of([&] { c.set("x", "{"); }).code(), ErrorCode::CF_VALUE);
  EXPECT_EQ(error_of([&] { c.set("r", "0"); }).code(), ErrorCode::CF_RANK);
}

RC_GTEST_PROP(AdapterConfig, WhatIsDumpedReadsBackTheSame, ()) {
  const auto name = rc::gen::container<std::string>(rc::gen::elementOf(std::string("abq_.1")));
  const auto names = rc::gen::container<std::vector<std::string>>(name);
  const auto number = rc::gen::map(rc::gen::inRange(1, 4000), [](int n) {
    return n % 2 ? Number{n / 8.0, false} : Number{n * 1.0, true};
  });
  AdapterConfig c;
  if (*rc::gen::arbitrary<bool>()) c = parse_with(R"("lora_alpha": 3.0, "extra": {"k": [1]}, "r": 2)");
  c.r = *rc::gen::inRange(1, 1000);
  c.lora_alpha = *number;
  c.lora_dropout = *rc::gen::inRange(0, 100) / 100.0;
  std::set<std::string> targets;
  for (const std::string& target : *names) targets.insert(target);
  c.target_modules = std::vector<std::string>(targets.begin(), targets.end());
  if (*rc::gen::arbitrary<bool>()) c.target_parameters = *names;
  if (*rc::gen::arbitrary<bool>()) c.modules_to_save = *names;
  std::map<std::string, Number> patterns;
  for (const std::string& key : *names) patterns.emplace(key, *number);
  c.alpha_pattern = PatternMap(patterns.begin(), patterns.end());  // sorted: dump sorts, and order has a meaning
  c.use_rslora = *rc::gen::arbitrary<bool>();
  c.base_model_name_or_path = *rc::gen::elementOf(std::vector<std::string>{"a/b", "", "größe/😀\n"});
  const std::string text = c.dump();
  const AdapterConfig back = parse(text);
  RC_ASSERT(fields_of(back) == fields_of(c));
  RC_ASSERT(back.dump() == text);
}

// ---- diff
// ------------------------------------------------------------------------------------------------------------

TEST(Diff, Lines) {
  EXPECT_EQ(diff("", ""), "");
  EXPECT_EQ(diff("a\nb\nc", "a\nb\nc"), " a\n b\n c\n");
  EXPECT_EQ(diff("a\nb\nc\n", "a\nx\nc\n"), " a\n-b\n+x\n c\n");
  EXPECT_EQ(diff("", "a"), "+a\n");
  EXPECT_EQ(diff("a\na", "a"), " a\n-a\n");
  EXPECT_EQ(diff("a\nb\nc\nd", "b\nx\nd"), "-a\n b\n-c\n+x\n d\n");
}

RC_GTEST_PROP(Diff, KeepsBothTexts, ()) {
  const auto lines =
      rc::gen::container<std::vector<std::string>>(rc::gen::elementOf(std::vector<std::string>{"a", "b", "c", ""}));
  const auto joined = [](const std::vector<std::string>& parts) {
    std::string text;
    for (const std::string& part : parts) text += part + "\n";
    return text;
  };
  const std::string before = joined(*lines), after = joined(*lines), text = diff(before, after);
  std::string without_added, without_removed;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string line = text.substr(at + 1, end - at);
    if (text[at] != '+') without_added += line;
    if (text[at] != '-') without_removed += line;
    at = end + 1;
  }
  RC_ASSERT(without_added == before);
  RC_ASSERT(without_removed == after);
}

}  // namespace
}  // namespace peft
