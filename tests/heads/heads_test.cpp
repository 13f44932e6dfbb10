// Heads that PEFT saves without being asked, and other tensors that are carried whole. The adapters of tests/heads are
// the real PEFT's (tests/heads/make.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "peft/error.h"
#include "peft/execute.h"
#include "peft/model.h"
#include "peft/verbs.h"
#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string heads(const std::string& name) { return (fs::path(PEFT_SOURCE_DIR) / "tests/heads" / name).string(); }

// Module and suffix of what is carried whole.
std::vector<std::string> carried(const Input& input) {
  std::vector<std::string> names;
  for (const Extra& extra : input.reading.factors.extras) {
    if (extra.kind == ExtraKind::saved_module) names.push_back(describe(extra.site) + "." + extra.suffix);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string text_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

ConvertOptions to_fused(const InputOptions& input = {}) {
  ConvertOptions options;
  options.input = input;
  options.to = Layout::peft_fused;
  return options;
}
LowRankResult side_by_side(const std::vector<WeightedAdapter>& adapters, const InputOptions& input = {}) {
  CombineOptions options;
  options.input = input;
  options.type = CombineType::cat;
  return plan_combine(adapters, options);
}
LowRankResult resized(const std::string& adapter, const InputOptions& input = {}) {
  ResizeOptions options;
  options.input = input;
  options.rank = 2;
  return plan_resize(adapter, options);
}
VerifyOptions reading_as(const InputOptions& input) {
  VerifyOptions options;
  options.a = options.b = input;
  return options;
}

// Gives the last element of the file, which is one of a head, another value.
void change_last_value(const fs::path& folder) {
  const fs::path file = folder / "adapter_model.safetensors";
  fs::permissions(file, fs::perms::owner_all);
  std::fstream bytes(file, std::ios::binary | std::ios::in | std::ios::out);
  bytes.seekp(-1, std::ios::end);
  bytes.put('\x40');
}

struct HeadRow {
  std::string folder;
  std::vector<std::string> head;
};

// The config says modules_to_save: null in all but the last; PEFT saves and loads the head all the same.
const std::vector<HeadRow>& head_rows() {
  static const std::vector<HeadRow> kRows = {
      {"llama-seq-cls", {"score.weight"}},
      {"bert-token-cls", {"classifier.bias", "classifier.weight"}},
      {"distilbert-question-ans", {"qa_outputs.bias", "qa_outputs.weight"}},
      {"distilbert-seq-cls", {"classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight"}},
      {"llama-seq-cls-new", {"score.weight"}},
  };
  return kRows;
}

TEST(Heads, are_saved_modules_by_the_type_of_task) {
  for (const HeadRow& row : head_rows()) {
    SCOPED_TRACE(row.folder);
    const Input input = load(heads(row.folder), {});
    EXPECT_EQ(carried(input), row.head);
    EXPECT_THAT(input.reading.unused, IsEmpty());
  }
}

TEST(Heads, go_through_convert_combine_and_resize_and_are_compared) {
  for (const HeadRow& row : head_rows()) {
    SCOPED_TRACE(row.folder);
    TemporaryFolder folder;
    const std::string source = heads(row.folder);
    execute(plan_convert(load(source, {}), to_fused()), folder / "converted");
    const std::vector<WeightedAdapter> one = {{source, 1}};
    execute(side_by_side(one).plan, folder / "combined");
    execute(resized(source).plan, folder / "resized");
    for (const char* made : {"converted", "combined", "resized"})
      EXPECT_EQ(carried(load(folder / made, {})), row.head) << made;
    EXPECT_TRUE(verify(source, folder / "converted", {}).same);
  }
}

TEST(Heads, of_experts_go_from_one_layout_to_the_other) {
  InputOptions options;
  options.base = heads("mixtral") + "/config.json";
  const std::string v4 = heads("mixtral-seq-cls-v4"), v5 = heads("mixtral-seq-cls-v5");
  EXPECT_TRUE(verify(v4, v5, reading_as(options)).same);
  TemporaryFolder folder;
  execute(plan_convert(load(v4, options), to_fused(options)), folder / "v5");
  EXPECT_EQ(carried(load(folder / "v5", options)), std::vector<std::string>{"score.weight"});
  EXPECT_TRUE(verify(folder / "v5", v5, reading_as(options)).same);
}

TEST(Heads, that_differ_are_differences) {
  TemporaryFolder folder;
  fs::copy(heads("llama-seq-cls"), folder / "other");
  change_last_value(folder / "other");
  const VerifyReport report = verify(heads("llama-seq-cls"), folder / "other", {});
  EXPECT_FALSE(report.same);
  ASSERT_EQ(report.differences.size(), 1u);
  EXPECT_EQ(report.differences[0].name, "score.weight");
}

MergeOptions merge_of(const std::string& base) {
  MergeOptions options;
  options.base = base;
  options.adapters = {{heads("llama-seq-cls"), 1}};
  return options;
}

// What AutoModelForSequenceClassification and merge_and_unload() of the real PEFT make of a base without a head.
TEST(Heads, are_put_into_the_base_by_merge) {
  const auto real = tensors_in(heads("llama-merged"));
  for (const char* base : {"llama", "llama-with-head"}) {
    SCOPED_TRACE(base);
    TemporaryFolder folder;
    const MergePlan merge = plan_merge(merge_of(heads(base)));
    execute(merge.plan, folder / "out");
    const auto out = tensors_in(folder / "out");
    for (const auto& [name, tensor] : real) {
      ASSERT_TRUE(out.contains(name)) << name;
      EXPECT_EQ(out.at(name).shape, tensor.shape) << name;
      ASSERT_EQ(out.at(name).values.size(), tensor.values.size()) << name;
      for (std::size_t i = 0; i < tensor.values.size(); ++i)
        EXPECT_NEAR(out.at(name).values[i], tensor.values[i], 1e-6) << name;
    }
    const bool added = std::string(base) == "llama";
    EXPECT_EQ(out.contains("lm_head.weight"), added) << "the base's own tensors stay";
    EXPECT_THAT(merge.plan.warnings, added ? ::testing::Matcher<std::vector<std::string>>(Contains(HasSubstr("score")))
                                           : Not(Contains(HasSubstr("score"))));
    VerifyMergedOptions check;
    check.merged = folder / "out";
    check.merge = merge_of(heads(base));
    EXPECT_TRUE(verify_merged(check).same);
    check.merged = heads(base);
    EXPECT_FALSE(verify_merged(check).same);
  }
}

TEST(Heads, of_two_adapters_that_are_the_same_are_carried_by_combine) {
  TemporaryFolder folder;
  const std::vector<WeightedAdapter> same = {{heads("llama-seq-cls"), 0.5}, {heads("llama-seq-cls-new"), 0.5}};
  const LowRankResult result = side_by_side(same);
  execute(result.plan, folder / "out");
  EXPECT_EQ(carried(load(folder / "out", {})), std::vector<std::string>{"score.weight"});
  EXPECT_TRUE(verify(heads("llama-seq-cls"), folder / "out", {}).same);

  fs::copy(heads("llama-seq-cls"), folder / "other");
  change_last_value(folder / "other");
  try {
    const std::vector<WeightedAdapter> two = {{heads("llama-seq-cls"), 0.5}, {folder / "other", 0.5}};
    side_by_side(two);
    ADD_FAILURE() << "two heads, one place";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::CF_UNSUP);
    EXPECT_THAT(error.what(), HasSubstr("score.weight"));
  }
}

// A head of an adapter that is not the first: the new config must say that it is saved.
TEST(Heads, of_the_second_adapter_are_in_the_config_of_the_combination) {
  TemporaryFolder folder;
  fs::copy(heads("llama-seq-cls"), folder / "plain");
  auto config = nlohmann::json::parse(text_of(folder / "plain/adapter_config.json"));
  config["task_type"] = "CAUSAL_LM";
  fs::permissions(folder / "plain/adapter_config.json", fs::perms::owner_all);
  std::ofstream(folder / "plain/adapter_config.json") << config.dump();
  fs::permissions(folder / "plain/adapter_model.safetensors", fs::perms::owner_all);
  std::vector<Stored> lora;
  for (const auto& [name, tensor] : tensors_in(heads("llama-seq-cls"))) {
    if (name.find("lora_") != std::string::npos)
      lora.push_back(stored_bytes(name, tensor.dtype, tensor.shape, tensor.bytes));
  }
  std::ofstream(folder / "plain/adapter_model.safetensors", std::ios::binary) << safetensors_of(lora);
  const std::vector<WeightedAdapter> two = {{folder / "plain", 0.5}, {heads("llama-seq-cls"), 0.5}};
  execute(side_by_side(two).plan, folder / "out");
  EXPECT_EQ(carried(load(folder / "out", {})), std::vector<std::string>{"score.weight"});
}

// PEFT's wrapper of a saved module, as some files hold it: what the module was, and the new one once more.
TEST(SavedModules, are_one_site_whatever_parts_of_the_wrapper_are_in_the_file) {
  const Input embedding = load(heads("llama-saved-embedding"), {});
  EXPECT_THAT(carried(embedding), ElementsAre("lm_head.weight", "model.embed_tokens.weight"));
  EXPECT_THAT(embedding.reading.unused, IsEmpty());
  EXPECT_THAT(embedding.reading.anomalies, Contains(HasSubstr("original_module")));

  const Input biases = load(heads("bert-all-biases"), {});
  EXPECT_THAT(carried(biases), ElementsAre("classifier.bias", "classifier.weight"));
  for (const Extra& extra : biases.reading.factors.extras) {
    EXPECT_EQ(extra.site.module.find("original_module"), std::string::npos);
    EXPECT_EQ(extra.site.module.find("modules_to_save"), std::string::npos);
  }
}

}  // namespace
}  // namespace peft::testing
