#include "layout/encode/write_config.h"

#include <gtest/gtest.h>

#include <cmath>

namespace peft::layout {
namespace {

using Names = std::vector<std::string>;

TEST(Suffixes, LeafWhereAllOfThemAreWanted) {
  EXPECT_EQ(shortest_suffixes({"l.0.q", "l.1.q"}, {"l.0.q", "l.1.q", "l.0.k"}), Names{"q"});
}

TEST(Suffixes, LongerWhereANamesakeIsNotWanted) {
  EXPECT_EQ(shortest_suffixes({"l.0.mlp.gate", "l.1.mlp.gate"}, {"l.0.mlp.gate", "l.1.mlp.gate", "l.0.shared.gate"}),
            Names{"mlp.gate"});
}

TEST(Suffixes, WholeNameWhereOneLayerIsLeftOut) {
  EXPECT_EQ(shortest_suffixes({"l.0.q", "l.10.q"}, {"l.0.q", "l.1.q", "l.10.q"}), (Names{"0.q", "10.q"}));
}

TEST(Suffixes, AContainerWithTheSameNameCounts) {
  EXPECT_EQ(shortest_suffixes({"a.x.gate"}, {"a.x.gate", "b.gate"}), Names{"x.gate"});
}

TEST(Patterns, OneForAllWithTheSameValue) {
  const auto patterns = shortest_patterns({{"l.0.q", 8}, {"l.1.q", 8}, {"l.0.k", 4}, {"l.1.k", 4}}, 8);
  ASSERT_EQ(patterns.size(), 1U);
  EXPECT_EQ(patterns[0].name, "k");
  EXPECT_EQ(patterns[0].value, 4);
}

TEST(Patterns, NeverTwoThatMatchOneName) {
  const auto patterns = shortest_patterns({{"l.0.q", 2}, {"l.1.q", 3}, {"l.2.q", 3}, {"m.2.q", 5}}, 1);
  for (const std::string name : {"l.0.q", "l.1.q", "l.2.q", "m.2.q"}) {
    int matching = 0;
    for (const auto& pattern : patterns)
      matching += name == pattern.name || name.ends_with("." + std::string(pattern.name)) ? 1 : 0;
    EXPECT_EQ(matching, 1) << name;
  }
}

TEST(Alpha, ShortestThatGivesTheScale) {
  EXPECT_EQ(alpha_for_scale(5.0 / 3, 6, false), (Number{10, true}));
  EXPECT_EQ(alpha_for_scale(5.0 / 3, 3, false), (Number{5, true}));
  EXPECT_EQ(alpha_for_scale(0.1, 7, false), (Number{0.7, false}));
  // rsLoRA: alpha / sqrt(r) stays, so alpha grows by sqrt(2) when the rank doubles, and comes back whole.
  const double scale = 16 / std::sqrt(8.0);
  const Number doubled = alpha_for_scale(scale, 16, true);
  EXPECT_NEAR(doubled.value, 22.627416997969522, 1e-13);
  EXPECT_EQ(alpha_for_scale(doubled.value / 4, 8, true), (Number{16, true}));
}

}  // namespace
}  // namespace peft::layout
