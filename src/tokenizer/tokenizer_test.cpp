#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "peft/error.h"
#include "support/golden.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kGolden = (testing::golden_root() / "tokenizer/").string();

// Sets a variable of the environment while it lives.
class Variable {
 public:
  Variable(const char* name, const std::string& value)
      : name_(name), old_(getenv(name) == nullptr ? "" : getenv(name)) {
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { old_.empty() ? unsetenv(name_) : setenv(name_, old_.c_str(), 1); }
  Variable(const Variable&) = delete;

 private:
  const char* name_;
  std::string old_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::RT_TOKENIZER);
    return error.what();
  }
  return "no error";
}

std::string empty_folder() {
  const fs::path folder = fs::temp_directory_path() / "peft-tokenizer-test";
  fs::create_directories(folder);
  return folder.string();
}

TEST(Tokenizer, text_is_held_back_until_its_characters_are_whole) {
  for (const char* kind : {"qwen", "mixtral"}) {
    Tokenizer tokenizer(kGolden + kind);
    const std::string text = "caf\u00e9 \U0001F642\U0001F44D\U0001F3FD \u6771\u4EAC";
    TextStream stream(tokenizer);
    std::string joined;
    for (const auto id : tokenizer.encode(text)) {
      const std::string piece = stream.add(id);
      EXPECT_THAT(piece, Not(HasSubstr("\uFFFD"))) << kind;
      joined += piece;
    }
    joined += stream.finish();
    EXPECT_EQ(joined, text) << kind;
    EXPECT_EQ(stream.text(), text) << kind;
  }
}

TEST(Tokenizer, half_a_character_at_the_end_is_given_out_at_the_end) {
  Tokenizer tokenizer(kGolden + "qwen");
  auto ids = tokenizer.encode("a\U0001F468");
  ids.pop_back();
  TextStream stream(tokenizer);
  std::string joined;
  for (const auto id : ids) joined += stream.add(id);
  EXPECT_EQ(joined, "a");
  EXPECT_THAT(stream.finish(), HasSubstr("\uFFFD"));
}

TEST(Tokenizer, what_is_missing_is_said) {
  const std::string folder = empty_folder();
  fs::remove(folder + "/tokenizer.json");
  EXPECT_THAT(error_of([&] { Tokenizer tokenizer(folder); }), HasSubstr("has no tokenizer.json"));
  std::ofstream(folder + "/tokenizer.json") << "{}";
  EXPECT_THAT(error_of([&] { Tokenizer tokenizer(folder); }), HasSubstr("the file is no tokenizer"));
  const Variable none("PEFT_PYTHON", "/nonexistent/python3");
  EXPECT_THAT(error_of([&] { Tokenizer tokenizer(kGolden + "qwen"); }), HasSubstr("/nonexistent/python3"));
}

TEST(Tokenizer, a_helper_that_dies_is_an_error) {
  const Variable echo("PEFT_PYTHON", "/bin/true");
  EXPECT_THAT(error_of([&] { Tokenizer tokenizer(kGolden + "qwen"); }), HasSubstr("ended"));
}

}  // namespace
}  // namespace peft
