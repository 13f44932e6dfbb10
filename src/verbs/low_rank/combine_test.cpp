#include "verbs/low_rank/combine.h"

#include <gtest/gtest.h>

#include "peft/error.h"
#include "support/error_of.h"

namespace peft {
namespace {

using On = verbs::CombineRule::On;

ErrorCode code_of(const CombineOptions& options, std::vector<WeightedAdapter> adapters = {{"nowhere"}}) {
  return testing::error_of([&] { plan_combine(adapters, options); }).code();
}

CombineOptions of_type(CombineType type, std::optional<double> density = {}) {
  CombineOptions options;
  options.type = type;
  options.density = density;
  return options;
}

TEST(Combine, every_type_has_a_name_and_a_rule) {
  for (std::size_t i = 0; i < combine_types().size(); ++i) {
    const auto type = static_cast<CombineType>(i);
    EXPECT_EQ(parse_combine_type(combine_types()[i]), type);
    const bool sum = type <= CombineType::svd, svd = combine_types()[i].ends_with("svd");
    EXPECT_EQ(verbs::rule_of(type).on, sum ? On::sum : svd ? On::updates : On::factors) << combine_types()[i];
  }
  EXPECT_EQ(parse_combine_type("mean"), std::nullopt);
}

TEST(Combine, options_that_a_type_does_not_have_are_refused_before_anything_is_opened) {
  EXPECT_EQ(code_of(of_type(CombineType::svd), {}), ErrorCode::USAGE);
  EXPECT_EQ(code_of(of_type(CombineType::ties)), ErrorCode::USAGE) << "it needs a density";
  EXPECT_EQ(code_of(of_type(CombineType::svd, 0.5)), ErrorCode::USAGE) << "it prunes nothing";
  EXPECT_EQ(code_of(of_type(CombineType::ties, 1.5)), ErrorCode::USAGE);
  EXPECT_EQ(code_of(of_type(CombineType::dare_ties, 0)), ErrorCode::USAGE) << "nothing would be kept";
  CombineOptions options = of_type(CombineType::cat);
  options.svd_rank = 4;
  EXPECT_EQ(code_of(options), ErrorCode::USAGE) << "it cuts no rank";
  EXPECT_EQ(code_of(of_type(CombineType::ties, 0.5)), ErrorCode::IO_OPEN) << "now the adapter is looked for";
}

TEST(Resize, the_rank_is_positive) { EXPECT_THROW(plan_resize("nowhere", {}), Error); }
TEST(Extract, the_rank_is_positive) { EXPECT_THROW(plan_extract({}), Error); }

}  // namespace
}  // namespace peft
