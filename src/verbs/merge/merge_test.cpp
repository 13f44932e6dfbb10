#include <gtest/gtest.h>

#include <filesystem>

#include "peft/error.h"
#include "peft/verbs.h"
#include "support/error_of.h"

namespace peft {
namespace {

ErrorCode code_of(const MergeOptions& options) {
  return testing::error_of([&] { plan_merge(options); }).code();
}

TEST(MergeOptions, sizes_are_read_as_huggingface_hub_reads_them) {
  EXPECT_EQ(parse_size("5GB"), 5'000'000'000u);
  EXPECT_EQ(parse_size("512MiB"), 512u << 20);
  EXPECT_EQ(parse_size("1.5 kb"), 1500u);
  EXPECT_EQ(parse_size("1000"), 1000u);
  for (const char* text : {"", "GB", "-1GB", "0", "5XB", "1e30TB", "nan"})
    EXPECT_THROW(parse_size(text), Error) << text;
}

TEST(MergeOptions, a_weight_follows_the_last_at_sign) {
  EXPECT_EQ(parse_weighted_adapter("dir@0.5").path, "dir");
  EXPECT_EQ(parse_weighted_adapter("dir@0.5").weight, 0.5);
  EXPECT_EQ(parse_weighted_adapter("a@b@-2").path, "a@b");
  EXPECT_EQ(parse_weighted_adapter("a@+3").weight, 3);
  EXPECT_EQ(parse_weighted_adapter("user@host").path, "user@host") << "no number follows";
  EXPECT_EQ(parse_weighted_adapter("@2").path, "@2") << "nothing stands before it";
}

TEST(MergeOptions, a_folder_of_the_whole_name_wins) {
  const auto folder = std::filesystem::temp_directory_path() / "peft_merge_test@0.5";
  std::filesystem::create_directories(folder);
  EXPECT_EQ(parse_weighted_adapter(folder.string()).path, folder.string());
  EXPECT_EQ(parse_weighted_adapter(folder.string()).weight, 1);
  std::filesystem::remove(folder);
}

TEST(MergeOptions, modes_have_names) {
  for (const auto mode : {MergeMode::best, MergeMode::peft, MergeMode::peft_safe, MergeMode::fast})
    EXPECT_EQ(parse_merge_mode(name(mode)), mode);
  EXPECT_EQ(parse_merge_mode("exact"), std::nullopt);
}

MergeOptions options_of(const std::string& base) {
  MergeOptions options;
  options.base = base;
  options.adapters = {{"nowhere"}};
  return options;
}

TEST(Merge, options_are_checked_before_anything_is_opened) {
  EXPECT_EQ(code_of({}), ErrorCode::USAGE);
  MergeOptions options = options_of("nowhere");
  options.max_shard_size = 0;
  EXPECT_EQ(code_of(options), ErrorCode::USAGE);
  EXPECT_EQ(code_of(options_of("/nowhere")), ErrorCode::IO_OPEN);
  EXPECT_EQ(code_of(options_of("/dev/null")), ErrorCode::IO_KIND);
}

}  // namespace
}  // namespace peft
