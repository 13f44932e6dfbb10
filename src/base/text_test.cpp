#include "base/text.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace peft {
namespace {

TEST(NaturalOrder, NumbersCountAsNumbers) {
  EXPECT_TRUE(natural_less("layers.9.x", "layers.10.x"));
  EXPECT_FALSE(natural_less("layers.10.x", "layers.9.x"));
  EXPECT_TRUE(natural_less("a.2", "a.10.b"));
  EXPECT_FALSE(natural_less("a.2", "a.2"));
  EXPECT_TRUE(natural_less("a.02", "a.2") != natural_less("a.2", "a.02"));
  EXPECT_TRUE(natural_less("model.layers.1.experts.12.w1", "model.layers.1.experts.13.w1"));
  EXPECT_TRUE(natural_less("model.layers.1.experts.19.w1", "model.layers.1.experts.113.w1"));
  EXPECT_TRUE(natural_less("abcdefgh1", "abcdefgh12"));
}

// A name as characters and numbers, to be compared one by one.
std::vector<std::pair<long, char>> pieces(const std::string& name) {
  std::vector<std::pair<long, char>> result;
  for (std::size_t i = 0; i < name.size();) {
    std::size_t end = i;
    while (end < name.size() && is_ascii_digit(name[end])) ++end;
    if (end > i) {
      result.emplace_back(std::stol(name.substr(i, end - i)), '0');
    } else {
      result.emplace_back(-1, name[end++]);
    }
    i = end;
  }
  return result;
}

TEST(NaturalOrder, IsTheOrderOfWordsAndNumbers) {
  std::mt19937 random(1);
  const std::string alphabet = "ab.0123";
  std::vector<std::string> names(300);
  for (std::string& name : names) {
    name = "model.layers.";
    for (auto n = random() % 12; n > 0; --n) name += alphabet[random() % alphabet.size()];
  }
  for (const std::string& a : names) {
    for (const std::string& b : names) {
      EXPECT_FALSE(natural_less(a, b) && natural_less(b, a));
      EXPECT_EQ(a == b, !natural_less(a, b) && !natural_less(b, a)) << a << " " << b;
      const auto x = pieces(a), y = pieces(b);
      const auto [i, j] = std::mismatch(x.begin(), x.end(), y.begin(), y.end());
      const bool ends = i == x.end() || j == y.end();
      if (ends && x.size() != y.size()) {
        EXPECT_EQ(natural_less(a, b), x.size() < y.size()) << a << " " << b;
      } else if (!ends && (i->first < 0) == (j->first < 0)) {
        EXPECT_EQ(natural_less(a, b), *i < *j) << a << " " << b;
      }
    }
  }
}

TEST(Text, ListsAndShapes) {
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{24, 3}), "[24, 3]");
  EXPECT_EQ(shape_text({}), "[]");
  const std::vector<std::string> names = {"a", "b", "c"};
  EXPECT_EQ(list_text(names), "a, b, c");
  EXPECT_EQ(list_text(names, 2), "a, b and 1 more");
  EXPECT_EQ(list_text({}), "");
}

}  // namespace
}  // namespace peft
