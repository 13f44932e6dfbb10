#include "cli/arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <class T>
T parsed(std::vector<std::string> arguments) {
  return std::get<T>(parse_arguments(std::move(arguments)));
}

std::string usage_error(std::vector<std::string> arguments) {
  try {
    parse_arguments(std::move(arguments));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::USAGE);
    return error.what();
  }
  return "no error";
}

TEST(Arguments, convert_takes_all_its_flags) {
  const auto command = parsed<ConvertCommand>({"convert",
                                               "a",
                                               "b",
                                               "--to",
                                               "peft-fused",
                                               "--out",
                                               "o",
                                               "--base",
                                               "m",
                                               "--dtype",
                                               "BF16",
                                               "--no-sync",
                                               "--no-readback",
                                               "--threads",
                                               "3",
                                               "--from",
                                               "peft-fused-0.18",
                                               "--orientation",
                                               "in-out",
                                               "--dry-run",
                                               "--json"});
  EXPECT_THAT(command.paths, ElementsAre("a", "b"));
  EXPECT_EQ(command.to, "peft-fused");
  EXPECT_EQ(command.input.base, "m");
  EXPECT_FALSE(command.execute.sync);
  EXPECT_FALSE(command.execute.readback);
  EXPECT_EQ(command.execute.threads, 3);
  EXPECT_TRUE(command.dry_run);
  EXPECT_TRUE(command.json);
  const InputOptions options = command.input.options();
  EXPECT_EQ(options.read.layout, Layout::peft_fused_0_18);
  EXPECT_EQ(options.read.orientation, "in-out");
}

TEST(Arguments, defaults_are_durable) {
  const auto command = parsed<ConvertCommand>({"convert", "a", "--to", "peft-fused", "--out", "o"});
  EXPECT_TRUE(command.execute.sync);
  EXPECT_TRUE(command.execute.readback);
  EXPECT_FALSE(command.execute.overwrite);
  EXPECT_FALSE(command.block_diagonal);
}

TEST(Arguments, a_flag_with_one_value_does_not_swallow_the_paths_that_follow) {
  const auto command = parsed<ConvertCommand>({"convert", "--from", "peft-fused", "a", "b", "--to", "peft-fused"});
  EXPECT_THAT(command.paths, ElementsAre("a", "b"));
  EXPECT_THAT(command.input.from, ElementsAre("peft-fused"));
  const auto verify = parsed<VerifyCommand>({"verify", "--from", "peft-fused", "a", "b"});
  EXPECT_THAT(verify.adapters, ElementsAre("a", "b"));
}

TEST(Arguments, verify_reads_a_flag_for_both_or_for_each) {
  auto command = parsed<VerifyCommand>({"verify", "a", "b", "--from", "peft-fused-0.18", "--from", "auto"});
  EXPECT_EQ(command.input.options(0).read.layout, Layout::peft_fused_0_18);
  EXPECT_EQ(command.input.options(1).read.layout, std::nullopt);
  command = parsed<VerifyCommand>({"verify", "a", "b", "--b-packing", "grouped-by-expert"});
  EXPECT_EQ(command.input.options(0).read.b_packing, BPacking::grouped_by_expert);
  EXPECT_EQ(command.input.options(1).read.b_packing, BPacking::grouped_by_expert);
}

TEST(Arguments, verify_compares_two_adapters_or_a_merged_model) {
  const auto command = parsed<VerifyCommand>({"verify", "--merged", "m", "--base", "b", "a@0.5", "c"});
  EXPECT_EQ(command.merged, "m");
  EXPECT_THAT(command.adapters, ElementsAre("a@0.5", "c"));
  EXPECT_THAT(usage_error({"verify", "a", "b", "c"}), HasSubstr("two adapters"));
  EXPECT_THAT(usage_error({"verify", "--merged", "m", "a"}), HasSubstr("--base"));
  EXPECT_THAT(usage_error({"verify", "--merged", "m", "--base", "b"}), HasSubstr("adapter"));
}

TEST(Arguments, only_verify_takes_a_reading_flag_twice) {
  EXPECT_THAT(usage_error({"convert", "a", "--to", "peft-fused", "--from", "peft-fused", "--from", "auto"}),
              HasSubstr("--from"));
}

TEST(Arguments, mistakes_are_usage_errors_that_name_the_flag) {
  EXPECT_THAT(usage_error({"convert", "a"}), HasSubstr("--to"));
  EXPECT_THAT(usage_error({"convert", "a", "--to", "x", "--nope"}), HasSubstr("--nope"));
  EXPECT_THAT(usage_error({"convert", "--to", "x"}), HasSubstr("adapters"));
  EXPECT_THAT(usage_error({"convert", "a", "--to", "x", "--threads", "0"}), HasSubstr("--threads"));
  EXPECT_THAT(usage_error({"verify", "a", "b", "--tolerance", "loose"}), HasSubstr("--tolerance"));
  EXPECT_THAT(usage_error({"polish"}), HasSubstr("polish"));
  EXPECT_THAT(usage_error({"verify", "a"}), HasSubstr("peft verify --help"));
}

TEST(Arguments, values_that_do_not_exist_list_those_that_do) {
  InputFlags flags;
  flags.from = {"peft-fuse"};
  try {
    flags.options();
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("one of peft-per-expert, peft-fused"));
    EXPECT_EQ(error.detail().got, "peft-fuse");
  }
  EXPECT_THROW(parse_dtype_flag("--dtype", "I32"), Error);
  EXPECT_EQ(parse_dtype_flag("--dtype", "BF16"), Dtype::bf16);
}

TEST(Arguments, help_and_version_are_text) {
  EXPECT_THAT(parsed<TextCommand>({"--version"}).text, HasSubstr("peft 0."));
  EXPECT_THAT(parsed<TextCommand>({}).text, HasSubstr("Examples:"));
  const std::string help = parsed<TextCommand>({"--help"}).text;
  for (const std::string verb : {"inspect", "targets", "convert", "verify", "combine", "resize", "extract", "layouts",
                                 "families", "completion"}) {
    EXPECT_THAT(help, HasSubstr(verb));
    EXPECT_THAT(parsed<TextCommand>({verb, "--help"}).text, HasSubstr("peft " + verb)) << verb;
  }
  EXPECT_THAT(help, testing::Not(HasSubstr("docs/ that is made"))) << "peft docs is hidden";
}

TEST(Arguments, completion_knows_the_flags_of_every_verb) {
  const auto command = parsed<CompletionCommand>({"completion", "bash"});
  std::vector<std::string> names;
  for (const auto& verb : command.verbs) names.push_back(verb.name);
  EXPECT_THAT(names, ElementsAre("inspect", "doctor", "targets", "convert", "verify", "logits", "generate", "params",
                                 "merge", "combine", "resize", "extract", "layouts", "engines", "families",
                                 "completion"));
  const auto flag = [&](const std::string& name) {
    const auto convert = std::ranges::find(command.verbs, "convert", &VerbInfo::name);
    const auto& flags = convert->flags;
    const auto at = std::find_if(flags.begin(), flags.end(), [&](const FlagInfo& info) { return info.name == name; });
    return at == flags.end() ? FlagInfo{.name = "not found"} : *at;
  };
  EXPECT_THAT(flag("--to").choices, testing::Contains("peft-fused"));
  EXPECT_EQ(flag("--dry-run").value, ValueKind::none);
  EXPECT_EQ(flag("--dry-run").name, "--dry-run");
  EXPECT_EQ(flag("--out").value, ValueKind::path);
}

}  // namespace
}  // namespace peft::cli
