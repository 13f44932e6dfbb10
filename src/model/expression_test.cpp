#include "model/expression.h"

#include <gtest/gtest.h>

#include "model/path.h"

namespace peft::model {
namespace {

const Json kConfig =
    Json::parse(R"({"a": 3, "b": 8, "list": [1, 5], "types": ["dense", "sparse"], "none": null, "name": "x"})");

std::optional<Value> look_up(std::string_view name) {
  if (name == "i") return Value(std::int64_t{1});
  const auto found = kConfig.find(name);
  return found == kConfig.end() ? std::nullopt : to_value(*found);
}
std::optional<std::int64_t> number(std::string_view text) { return evaluate_integer(text, look_up); }
std::optional<bool> condition(std::string_view text) { return evaluate_condition(text, look_up); }

TEST(Expression, Integers) {
  EXPECT_EQ(number("2a"), 6);
  EXPECT_EQ(number("a*b"), 24);
  EXPECT_EQ(number("(a+2*b)*a"), 57);
  EXPECT_EQ(number("b//a"), 2);
  EXPECT_EQ(number("(a-b)//a"), -2);  // towards minus infinity, as in Python
  EXPECT_EQ(number("(a-b)%a"), 1);
  EXPECT_EQ(number("list[1]"), 5);
  EXPECT_EQ(number("64"), 64);
}

TEST(Expression, Conditions) {
  EXPECT_EQ(condition("(i + 1) % a == 0 and i not in list"), false);
  EXPECT_EQ(condition("i + 1 not in list and a < b"), true);
  EXPECT_EQ(condition("i in list"), true);
  EXPECT_EQ(condition("a <= i <= b"), false);
  EXPECT_EQ(condition("i <= a <= b"), true);
  EXPECT_EQ(condition("types[i] == 'sparse'"), true);
  EXPECT_EQ(condition("none != None"), false);
  EXPECT_EQ(condition("name == 'x'"), true);
}

TEST(Expression, WhatIsNotKnownHasNoValue) {
  for (const char* text : {"missing", "a+missing", "list[2]", "list[missing]", "a//0", "a%0", "name+1", "list",
                           "9223372036854775807+1", "99999999999999999999", "9223372036854775807*2"}) {
    EXPECT_EQ(number(text), std::nullopt) << text;
  }
  EXPECT_EQ(condition("missing == 1"), std::nullopt);
  EXPECT_EQ(condition("i in a"), std::nullopt);
  EXPECT_EQ(condition("name < 1"), std::nullopt);
}

TEST(Expression, BadSyntaxIsNotKnownEither) {
  for (const char* text : {"", "a b", "(a", "a)", "a+", "*a", "list[1", "'open", "affine(a:24->25)", "a ==", "not a"}) {
    EXPECT_EQ(evaluate(text, look_up), std::nullopt) << text;
  }
  EXPECT_EQ(evaluate(std::string(100000, '('), look_up), std::nullopt);
}

TEST(Path, KeysSetNumbersApart) {
  const PathKey key = path_key("model.layers.3.mlp.experts.17.w1");
  EXPECT_EQ(key.key, "model.layers.#.mlp.experts.#.w1");
  ASSERT_EQ(key.numbers.size(), 2u);
  EXPECT_EQ(key.numbers[1].value, 17);
  EXPECT_TRUE(key.numbers[1].plain);
  EXPECT_FALSE(path_key("a.01").numbers.at(0).plain);
  EXPECT_FALSE(path_key("a.-1").numbers.at(0).plain);
  EXPECT_FALSE(path_key("a.9999999999999999999").numbers.at(0).plain);
  EXPECT_EQ(path_key("a.expert_4.wi").key, "a.expert_#.wi");
  EXPECT_TRUE(path_key("a.b1.c").numbers.empty());
}

TEST(Path, TemplatesMatchAndFill) {
  const PathTemplate path("decoder.block.{layer}.layer.2.mlp.experts.expert_{expert}.wi");
  const std::string filled = path.fill(7, 3);
  EXPECT_EQ(filled, "decoder.block.7.layer.2.mlp.experts.expert_3.wi");
  const PathKey key = path_key(filled);
  ASSERT_EQ(key.key, path.key());
  const auto match = path.match(key.numbers);
  ASSERT_TRUE(match);
  EXPECT_EQ(match->layer.value, 7);
  EXPECT_EQ(match->expert.value, 3);
  EXPECT_FALSE(path.match(path_key("decoder.block.7.layer.1.mlp.experts.expert_3.wi").numbers));
}

}  // namespace
}  // namespace peft::model
