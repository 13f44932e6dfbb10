// What a pattern may not do to us. What Python answers is compared by the golden runner (golden/regex).
#include "pythonic/python_regex.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "peft/error.h"
#include "support/error_of.h"

namespace peft {
namespace {

using testing::error_of;

TEST(PythonRegex, AnErrorNamesPatternPositionAndPlace) {
  const Error error = error_of([] { PythonRegex("a(b", "target_modules"); });
  EXPECT_EQ(error.code(), ErrorCode::CF_REGEX);
  EXPECT_EQ(error.detail().problem, "missing ), unterminated subpattern at position 1");
  EXPECT_EQ(error.detail().got, "a(b");
  EXPECT_EQ(error.detail().tensor, "target_modules");
}

TEST(PythonRegex, ACatastrophicPatternEndsInAnErrorQuickly) {
  const std::string text = std::string(64, 'a') + "!";
  for (const char* pattern :
       {"(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){20}$", "(?:a*)*b", "(?:(a+)+)+\\Z", "(a*)*\\1x"}) {
    const auto start = std::chrono::steady_clock::now();
    const PythonRegex regex(pattern);
    try {
      EXPECT_FALSE(regex.matches(text)) << pattern;
      EXPECT_FALSE(regex.fullmatch(text)) << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::CF_REGEX);
      EXPECT_NE(error.detail().problem.find("steps"), std::string::npos) << error.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2)) << pattern;
  }
  EXPECT_EQ(error_of([&] { PythonRegex("(a+)+$").matches(text); }).code(), ErrorCode::CF_REGEX);
}

TEST(PythonRegex, LargePatternsAreRefusedNotCrashed) {
  const std::string deep = std::string(100'000, '(') + std::string(100'000, ')');
  EXPECT_EQ(error_of([&] { PythonRegex{deep}; }).code(), ErrorCode::CF_REGEX);
  EXPECT_EQ(error_of([&] { PythonRegex{std::string(1 << 19, 'a')}; }).code(), ErrorCode::CF_REGEX);
  EXPECT_EQ(error_of([] { PythonRegex("((a{60000}b){60000}c){60000}"); }).code(), ErrorCode::CF_REGEX);
  std::string nested = "x";
  for (int i = 0; i < 300; ++i) nested = "(?:" + nested + "|y)";
  EXPECT_TRUE(PythonRegex(nested).fullmatches("y"));
}

TEST(PythonRegex, TextAndPatternMustBeUtf8) {
  EXPECT_EQ(error_of([] { PythonRegex("\xff"); }).code(), ErrorCode::CF_REGEX);
  const PythonRegex any(".*");
  for (const char* bad : {"\xff", "a\xc3", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xc0\x80"}) {
    EXPECT_EQ(error_of([&] { any.matches(bad); }).code(), ErrorCode::CF_REGEX);
  }
}

TEST(PythonRegex, CountsAbovePcre2sLimit) {
  EXPECT_FALSE(PythonRegex("a{65536}").matches(std::string(65535, 'a')));
  EXPECT_EQ(error_of([] { PythonRegex("a{65536}").matches(std::string(65536, 'a')); }).code(), ErrorCode::CF_REGEX);
  EXPECT_TRUE(PythonRegex("a{2,70000}").fullmatches("aaa"));
  EXPECT_FALSE(PythonRegex("a{2,70000}").fullmatches("a"));
}

TEST(PythonRegex, OnePatternServesManyThreads) {
  const PythonRegex regex(".*\\.(?P<which>q|v)_proj");
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const auto groups = regex.fullmatch("layers." + std::to_string(i) + ".q_proj");
        if (groups && groups->size() == 2 && regex.search("x.v_proj!") && !regex.matches("k_proj")) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 2000);
}

}  // namespace
}  // namespace peft
