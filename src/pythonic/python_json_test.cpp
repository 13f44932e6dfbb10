#include "pythonic/python_json.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>

#include "peft/error.h"
#include "pythonic/unicode.h"
#include "support/error_of.h"

namespace peft::pythonic {
namespace {

Error error_of(std::string_view text) {
  Error error = testing::error_of([&] { parse_json(text, "config.json"); });
  EXPECT_EQ(error.detail().file, "config.json") << text.substr(0, 80);
  return error;
}

TEST(PythonJson, WritesAsJsonDumps) {
  // python3: print(json.dumps(json.loads(text), indent=2, sort_keys=True))
  const std::string text =
      R"({"b": [1, 2.50, 1e5, 1E-5, 1e16, 123456789012345678901234567890, -0, -0.0], "a": {}, "é": "😀\u0007\t/\u007f",
    "Z": [], "c": {"y": null, "x": [true, false, [[]]]}})";
  const std::string expected = R"({
  "Z": [],
  "a": {},
  "b": [
    1,
    2.5,
    100000.0,
    1e-05,
    1e+16,
    123456789012345678901234567890,
    0,
    -0.0
  ],
  "c": {
    "x": [
      true,
      false,
      [
        []
      ]
    ],
    "y": null
  },
  "\u00e9": "\ud83d\ude00\u0007\t/)"
                               "\x7f"
                               R"("
})";
  EXPECT_EQ(dump_python(parse_json(text, "")), expected);
  EXPECT_EQ(dump_python(parse_json(R"({"b":1,"a":[1,2],"c":{}})", ""), -1), R"({"a": [1, 2], "b": 1, "c": {}})");
  EXPECT_EQ(dump_python(parse_json(R"({"b":1,"a":2})", ""), -1, false), R"({"b": 1, "a": 2})");
}

TEST(PythonJson, FloatsAsRepr) {
  const std::pair<double, const char*> cases[] = {{0.0, "0.0"},
                                                  {-0.0, "-0.0"},
                                                  {5, "5.0"},
                                                  {0.1, "0.1"},
                                                  {1e-4, "0.0001"},
                                                  {1e-5, "1e-05"},
                                                  {1e15, "1000000000000000.0"},
                                                  {1e16, "1e+16"},
                                                  {1.5e16, "1.5e+16"},
                                                  {123456789.125, "123456789.125"},
                                                  {1e22, "1e+22"},
                                                  {1e100, "1e+100"},
                                                  {5e-324, "5e-324"},
                                                  {1.7976931348623157e308, "1.7976931348623157e+308"},
                                                  {11.313708498984761, "11.313708498984761"},
                                                  {9007199254740993.0, "9007199254740992.0"},
                                                  {2.0 / 3, "0.6666666666666666"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(python_float(value), text);
}

RC_GTEST_PROP(PythonJson, AFloatReadsBackTheSame, (double value)) {
  RC_PRE(std::isfinite(value));
  RC_ASSERT(parse_json(python_float(value), "").get<double>() == value);
}

RC_GTEST_PROP(PythonJson, AStringReadsBackTheSame, ()) {
  const auto characters = *rc::gen::container<std::u32string>(
      rc::gen::suchThat(rc::gen::inRange<char32_t>(0, 0x110000), [](char32_t c) { return c < 0xD800 || c > 0xDFFF; }));
  const std::string text = encode_utf8(characters);
  const std::string dumped = dump_python(Json(text));
  RC_ASSERT(std::all_of(dumped.begin(), dumped.end(), [](char c) { return c >= 0x20; }));
  RC_ASSERT(Json::parse(dumped).get<std::string>() == text);
  RC_ASSERT(decode_utf8(text) == characters);
}

TEST(PythonJson, ADuplicateKeyIsNamedAtAnyLevel) {
  EXPECT_EQ(error_of(R"({"r": 8, "r": 16})").detail().tensor, "r");
  EXPECT_EQ(error_of(R"({"x": [{"a": {"b": 1, "\u0062": 2}}]})").detail().tensor, "x.a.b");
  EXPECT_NE(error_of(R"({"r": 8, "r": 16})").detail().problem.find("twice"), std::string::npos);
  EXPECT_NO_THROW(parse_json(R"({"a": {"r": 1}, "b": {"r": 1}})", ""));
}

TEST(PythonJson, LiteralsOfPythonAreNamed) {
  for (const char* literal : {"NaN", "Infinity", "-Infinity"}) {
    const Error error = error_of("{\"a\": {\"lora_alpha\": " + std::string(literal) + "}}");
    EXPECT_EQ(error.detail().got, literal);
    EXPECT_EQ(error.detail().tensor, "a.lora_alpha");
    EXPECT_NE(error.detail().problem.find("Python"), std::string::npos);
  }
  EXPECT_EQ(error_of(R"([1, 1e400])").detail().got, "1e400");
  EXPECT_EQ(error_of(R"({"a": -1E999})").detail().got, "-1E999");
}

TEST(PythonJson, TextThatIsNotJson) {
  struct Case {
    std::string text, part;  // part of the problem
  };
  const Case cases[] = {{"", "byte 0"},
                        {"\xEF\xBB\xBF{}", "byte order mark"},
                        {std::string("\xFF\xFE{\0}\0", 6), "UTF-16"},
                        {"{\"a\": \"\xff\"}", "UTF-8 at byte 7"},
                        {"{\"a\": \"\xed\xa0\x80\"}", "UTF-8"},
                        {"{\"a\": 1,}", "not JSON at byte 8"},
                        {"{'a': 1}", "not JSON"},
                        {"{\"a\": 1} x", "not JSON"},
                        {"{\"a\": 01}", "not JSON"},
                        {"{\"a\": \"\\ud800\"}", "not JSON"},
                        {"{\"a\": \"\n\"}", "not JSON"},
                        {"{\"a\": 1 // x\n}", "not JSON"},
                        {"{\n \"a\": tru }", "line 2"},
                        {std::string(100'000, '['), "64 levels"}};
  for (const Case& one : cases) {
    const Error error = error_of(one.text);
    EXPECT_EQ(error.code(), ErrorCode::CF_FORM);
    EXPECT_NE(error.detail().problem.find(one.part), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), ""));
  EXPECT_NE(error_of(std::string(kMaxJsonBytes + 1, ' ')).detail().problem.find("bytes"), std::string::npos);
}

TEST(PythonJson, ManyKeysAreReadInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += "\"key" + std::to_string(i) + "\": 1, ";
  EXPECT_EQ(parse_json(text + "\"last\": 2}", "").size(), 200'001U);  // quadratic: minutes
}

}  // namespace
}  // namespace peft::pythonic
