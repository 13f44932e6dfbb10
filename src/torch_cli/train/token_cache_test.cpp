#include "torch_cli/train/token_cache.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "peft/error.h"
#include "support/golden.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;

class Cached : public ::testing::Test {
 protected:
  void SetUp() override {
    const fs::path tokenizer = testing::golden_root() / "tokenizer/qwen/tokenizer.json";
    if (!fs::exists(tokenizer)) GTEST_SKIP() << "no golden tokenizer";
    fs::create_directories(folder_.path() / "base"), fs::create_directories(folder_.path() / "out");
    fs::copy_file(tokenizer, folder_.path() / "base/tokenizer.json");
    testing::write_file(folder_.path() / "base/tokenizer_config.json", R"({"eos_token": {"content": "<|im_end|>"}})");
    testing::write_file(data_, "rows");
  }
  TokenCache cache(const TextRows::Options& options = {}) const {
    return {folder_ / "out", data_, folder_ / "base", options};
  }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_.path() / "out"), fs::directory_iterator()));
  }
  testing::TemporaryFolder folder_;
  std::string data_ = folder_ / "rows.jsonl";
  static constexpr const char* kFirst = R"({"text": "hello world"})";
  static constexpr const char* kSecond = R"({"prompt": "a b", "completion": " c"})";
};

TEST_F(Cached, rows_come_back_without_a_tokenizer) {
  TextRows text(folder_ / "base", {});
  TokenCache made = cache();
  const train::Row first = made.row(kFirst, text), second = made.row(kSecond, text);
  made.save();
  ASSERT_EQ(files(), 1u);
  TextRows none(folder_ / "no such folder", {});
  TokenCache kept = cache();
  for (const train::Row* wanted : {&first, &second}) {
    const train::Row row = kept.row("", none);
    EXPECT_EQ(row.ids, wanted->ids);
    EXPECT_EQ(row.labels, wanted->labels);
  }
  EXPECT_EQ(kept.guessed(), made.guessed());
}

TEST_F(Cached, other_data_or_options_are_another_file_and_a_damaged_one_is_none) {
  TextRows text(folder_ / "base", {}), none(folder_ / "no such folder", {});
  TokenCache made = cache();
  made.row(kFirst, text);
  made.save();
  EXPECT_THROW(cache({.completion_only_loss = false}).row(kFirst, none), Error);
  const std::string file = fs::directory_iterator(folder_.path() / "out")->path().string();
  testing::write_file(file, testing::read_file(file).substr(0, 60));
  EXPECT_THROW(cache().row(kFirst, none), Error);
  testing::write_file(data_, "other rows");
  EXPECT_THROW(cache().row(kFirst, none), Error);
}

}  // namespace
}  // namespace peft::torch_cli
