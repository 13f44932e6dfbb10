#include "torch_cli/params.h"

#include <gtest/gtest.h>

namespace peft::torch_cli {
namespace {

TEST(ParameterKinds, numbers_between_dots_become_stars) {
  EXPECT_EQ(without_numbers("model.layers.13.mlp.experts.7.w1"), "model.layers.*.mlp.experts.*.w1");
  EXPECT_EQ(without_numbers("0.in_proj_a2.1"), "*.in_proj_a2.*");
  EXPECT_EQ(without_numbers("lm_head.weight"), "lm_head.weight");
}

}  // namespace
}  // namespace peft::torch_cli
