// Against what Python 3.11 answered (golden/regex), and what a pattern may not do to us.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "config/regex_parser.h"
#include "config/test_files.h"
#include "config/unicode.h"
#include "peft/config.h"
#include "peft/error.h"

namespace peft {
namespace {

using nlohmann::json;

// One row of python_re.jsonl, as this implementation would write it.
json spans_in_characters(const std::optional<PythonRegex::Groups>& groups, const std::string& text) {
  if (!groups) return nullptr;
  const auto characters = [&](std::int64_t bytes) {
    return config::decode_utf8(std::string_view(text).substr(0, static_cast<std::size_t>(bytes))).size();
  };
  json result = json::array();
  for (const auto& [begin, end] : *groups) {
    result.push_back(begin < 0 ? json(nullptr) : json::array({characters(begin), characters(end)}));
  }
  return result;
}

void answer_syntax(json& row, const std::string& pattern) {
  std::vector<config::RegexWarning> warnings;
  try {
    config::RegexParser parser(config::decode_utf8(pattern), &warnings);
    parser.parse();
  } catch (const config::RegexError& error) {
    row["error"]["class"] = error.kind;
    if (error.kind == "re.error") {
      row["error"]["message"] = error.message;
      row["error"]["pos"] = error.position ? json(*error.position) : json(nullptr);
    }
  }
  for (const config::RegexWarning& warning : warnings) {
    row["warnings"].push_back(json::array({warning.category, warning.text}));
  }
}

json answer(const std::string& pattern, const std::string& text) {
  json row;
  row["p"] = pattern;
  row["s"] = text;
  answer_syntax(row, pattern);
  try {
    const PythonRegex regex(pattern);
    row["fullmatch"] = spans_in_characters(regex.fullmatch(text), text);
    row["match"] = spans_in_characters(regex.match(text), text);
    row["search"] = spans_in_characters(regex.search(text), text);
    for (const auto& [name, number] : regex.names()) row["names"][name] = number;
    EXPECT_EQ(regex.matches(text), !row["match"].is_null()) << pattern;
    EXPECT_EQ(regex.fullmatches(text), !row["fullmatch"].is_null()) << pattern;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::CF_REGEX);
    if (!row.contains("error")) row["error"]["class"] = "ours";
    row["error"]["text"] = error.detail().problem;
  }
  return row;
}

std::size_t check_rows(const std::filesystem::path& file) {
  std::ifstream lines(file);
  std::size_t rows = 0;
  for (std::string line; std::getline(lines, line); ++rows) {
    const json expected = json::parse(line);
    const json got = answer(expected["p"], expected["s"]);
    EXPECT_EQ(got, expected) << "pattern " << expected["p"] << " got\n" << got << "\nPython's\n" << expected;
  }
  return rows;
}

TEST(PythonRegex, AnswersAsPythonDoes) {
  const auto file = testing::golden_folder() / "regex" / "python_re.jsonl";
  ASSERT_TRUE(std::filesystem::exists(file)) << file;
  const std::size_t rows = check_rows(file);
  EXPECT_GE(rows, 100U);
  std::cout << rows << " rows of " << file << "\n";
}

// tools/regex_differential.py sets this to rows of its own.
TEST(PythonRegex, AnswersAsPythonDoesOnFurtherRows) {
  const char* file = std::getenv("PEFT_REGEX_ROWS");
  if (file == nullptr) GTEST_SKIP() << "PEFT_REGEX_ROWS names no file";
  EXPECT_GT(check_rows(file), 0U);
}

Error error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorCode::INTERNAL, {});
}

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
