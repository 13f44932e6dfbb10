#include "model/path.h"

#include <gtest/gtest.h>

namespace peft::model {
namespace {

TEST(Path, WithoutNumbers) {
  EXPECT_EQ(without_numbers("model.layers.13.mlp.experts.7.w1"), "model.layers.*.mlp.experts.*.w1");
  EXPECT_EQ(without_numbers("0.in_proj_a2.1"), "*.in_proj_a2.*");
  EXPECT_EQ(without_numbers("lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(without_numbers(""), "");
}

}  // namespace
}  // namespace peft::model
