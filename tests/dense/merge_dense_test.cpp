// Dense and encoder types: tests/dense, made by the real PEFT. Whatever is known of the base, no verb gets worse by it,
// and a merge finds each weight whatever class the checkpoint was saved from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> cases() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(fs::path(PEFT_SOURCE_DIR) / "tests/dense")) {
    if (fs::exists(entry.path() / "adapter")) folders.push_back(entry.path());
  }
  EXPECT_GE(folders.size(), 8u);
  return folders;
}

// The same base, of a type that nobody knows.
void write_unknown(const fs::path& base, const fs::path& out) {
  fs::copy(base, out);
  Json config = Json::parse(read_file(base / "config.json"));
  config["model_type"] = "a_type_of_tomorrow";
  write_file(out / "config.json", config.dump());
}

TEST(Dense, NoBaseMakesAnAdapterUnreadable) {
  for (const fs::path& folder : cases()) {
    const TemporaryFolder temporary;
    write_unknown(folder / "base", temporary / "unknown");
    const std::string adapter = (folder / "adapter").string();
    const auto alone = load(adapter, {}).reading.factors.factors;
    EXPECT_FALSE(alone.empty()) << folder;
    for (const fs::path& base : {folder / "base", folder / "base/config.json", fs::path(temporary / "unknown"),
                                 fs::path(temporary / "unknown/config.json")}) {
      SCOPED_TRACE(base.string());
      try {
        InputOptions options;
        options.base = base.string();
        EXPECT_EQ(load(adapter, options).reading.factors.factors.size(), alone.size());
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    }
  }
}

void expect_merged(const fs::path& folder, const fs::path& base_folder);

TEST(Dense, MergedAsPeftMergesThem) {
  for (const fs::path& folder : cases()) expect_merged(folder, folder / "base");
}

TEST(Dense, MergedIntoABaseOfAnUnknownType) {
  for (const fs::path& folder : cases()) {
    const TemporaryFolder temporary;
    write_unknown(folder / "base", temporary / "unknown");
    expect_merged(folder, temporary / "unknown");
  }
}

void expect_merged(const fs::path& folder, const fs::path& base_folder) {
  SCOPED_TRACE(base_folder.string() + " of " + folder.string());
  const TemporaryFolder temporary;
  MergeOptions options;
  options.base = base_folder.string();
  options.adapters = {{(folder / "adapter").string(), 1}};
  try {
    execute(plan_merge(options).plan, temporary / "out");
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
    return;
  }
  const auto base = tensors_in(folder / "base"), want = tensors_in(folder / "merged"),
             got = tensors_in(temporary / "out");
  for (const auto& [name, tensor] : base) {
    const auto changed = want.find(name);
    ASSERT_TRUE(got.contains(name)) << name;
    if (changed == want.end()) {
      EXPECT_EQ(got.at(name).bytes, tensor.bytes) << name;
      continue;
    }
    ASSERT_EQ(got.at(name).shape, changed->second.shape) << name;
    for (std::size_t i = 0; i < tensor.values.size(); ++i)
      ASSERT_NEAR(got.at(name).values[i], changed->second.values[i], 2e-6) << name << " " << i;
  }
}

// A tied base: only a class that has an output embedding gets a tensor for it, under the class's own name.
TEST(Dense, AnEncoderGetsNoOutputThatItDoesNotHave) {
  constexpr std::int64_t kVocabulary = 13, kHidden = 8, kRank = 2;
  struct Case {
    const char *architecture, *prefix, *output;
  };
  for (const Case& c :
       {Case{"DistilBertForMaskedLM", "distilbert.", "vocab_projector.weight"},
        Case{"DistilBertForSequenceClassification", "distilbert.", nullptr}, Case{"DistilBertModel", "", nullptr}}) {
    SCOPED_TRACE(c.architecture);
    const TemporaryFolder folder;
    Draw draw(1);
    const std::string words = std::string(c.prefix) + "embeddings.word_embeddings";
    const std::string query = std::string(c.prefix) + "transformer.layer.0.attention.q_lin.weight";
    write_base(folder / "base",
               {{"model_type", "distilbert"},
                {"architectures", {c.architecture}},
                {"dim", kHidden},
                {"n_layers", 1},
                {"n_heads", 2},
                {"hidden_dim", 12},
                {"vocab_size", kVocabulary},
                {"tie_word_embeddings", true}},
               {{stored(words + ".weight", "F32", draw.matrix(kVocabulary, kHidden, 0.125, 7)),
                 stored(query, "F32", draw.matrix(kHidden, kHidden, 0.125, 7))}});
    write_lora(
        folder / "adapter", lora_config(kRank, 2, {{"target_modules", {"word_embeddings"}}}),
        {stored("base_model.model." + words + ".lora_embedding_A", "F32", draw.matrix(kRank, kVocabulary, 0.125, 7)),
         stored("base_model.model." + words + ".lora_embedding_B", "F32", draw.matrix(kHidden, kRank, 0.125, 7))});
    MergeOptions options;
    options.base = folder / "base";
    options.adapters = {{folder / "adapter", 1}};
    execute(plan_merge(options).plan, folder / "out");
    std::vector<std::string> names = {words + ".weight", query};
    if (c.output != nullptr) names.emplace_back(c.output);
    std::vector<std::string> merged;
    for (const auto& [name, tensor] : tensors_in(folder / "out")) merged.push_back(name);
    EXPECT_THAT(merged, ::testing::UnorderedElementsAreArray(names));
  }
}

}  // namespace
}  // namespace peft::testing
