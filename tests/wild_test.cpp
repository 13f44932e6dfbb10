// Adapters as they lie about (tests/wild): what every verb of the program says of each is what a user needs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/golden.h"
#include "support/program.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kWild = fs::path(PEFT_SOURCE_DIR) / "tests/wild";

std::vector<std::string> folders() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kWild)) {
    if (fs::exists(entry.path() / "expect.json")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The command line of a verb on an adapter: as plain as a user writes it.
std::vector<std::string> command_of(const std::string& verb, const std::string& adapter, const std::string& base,
                                    const std::string& out) {
  std::vector<std::string> command;
  if (verb == "inspect") command = {"inspect", adapter};
  if (verb == "targets") command = {"targets", adapter};
  if (verb == "convert") command = {"convert", adapter, "--to", "peft-fused", "--out", out};
  if (verb == "verify") command = {"verify", adapter, adapter};
  if (verb == "merge") command = {"merge", "--adapter", adapter, "--out", out};
  if (verb == "combine") command = {"combine", adapter + "@0.5", adapter + "@0.5", "--type", "cat", "--out", out};
  if (verb == "resize") command = {"resize", adapter, "--rank", "1", "--out", out};
  if (!base.empty()) command.insert(command.end(), {"--base", base});
  return command;
}

class Wild : public ::testing::TestWithParam<std::string> {};

TEST_P(Wild, every_verb_says_what_a_user_needs) {
  const fs::path folder = kWild / GetParam();
  const Json expect = read_json(folder / "expect.json");
  const auto base_name = expect["base"].get<std::string>();
  const std::string base = base_name.empty() ? "" : (folder / base_name).lexically_normal().string();
  for (const auto& [verb, wanted] : expect["verbs"].items()) {
    SCOPED_TRACE(verb);
    const TemporaryFolder temporary;
    const std::string out = temporary / "out";
    const ProgramResult result = run_program(PEFT_PROGRAM, command_of(verb, folder, base, out));
    const std::string said = result.out + result.err;
    EXPECT_EQ(result.exit_code, wanted[0].get<int>()) << said;
    for (const auto& word : wanted[1]) EXPECT_THAT(said, HasSubstr(word.get<std::string>()));
    EXPECT_EQ(fs::exists(out), result.exit_code == 0 && verb != "inspect" && verb != "targets" && verb != "verify");
  }
}
INSTANTIATE_TEST_SUITE_P(Folders, Wild, ::testing::ValuesIn(folders()), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
});

TEST(WildFolders, AreThere) { EXPECT_GE(folders().size(), 12u); }

}  // namespace
}  // namespace peft::testing
