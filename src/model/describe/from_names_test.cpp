// describe() of names, with and without a family.
#include <gtest/gtest.h>

#include "peft/error.h"
#include "peft/model.h"

namespace peft {
namespace {

TEST(FromNames, UnknownFamilyNamesNearOnes) {
  try {
    describe({.family = "qwen3moe"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::MD_FAMILY);
    EXPECT_NE(error.detail().expected.find("qwen3_moe"), std::string::npos);
  }
}

TEST(FromNames, PartsOfCompositesAreFoundThroughThem) {
  const Model model =
      describe({.family = "qwen3_omni_moe_text", .names = {"model.language_model.layers.0.mlp.experts"}});
  EXPECT_EQ(model.experts.size(), 1u);
  EXPECT_FALSE(model.notes.empty());
  const Model text = describe({.family = "qwen3_5_moe", .names = {"model.layers.0.mlp.experts.3.up_proj"}});
  ASSERT_EQ(text.experts.size(), 1u);
  EXPECT_EQ(text.experts[0].v5_module, "model.layers.0.mlp.experts");
}

TEST(FromNames, AgreeingFamiliesNeedNoName) {
  const Model model =
      describe({.names = {"model.layers.0.mlp.experts.0.gate_proj", "model.layers.5.mlp.experts.9.down_proj",
                          "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate"}});
  ASSERT_EQ(model.experts.size(), 2u);
  EXPECT_EQ(model.experts[1].layer, 5);
  EXPECT_EQ(model.experts[1].num_experts, 10);
  EXPECT_TRUE(model.num_experts_assumed);
  EXPECT_EQ(model.experts[1].v5_module, "model.layers.5.mlp.experts");
  EXPECT_EQ(model.rename("model.layers.0.mlp.gate", Generation::v4, Generation::v5), "model.layers.0.mlp.gate");
}

TEST(FromNames, DisagreeingFamiliesAreNamed) {
  const Model model = describe({.names = {"model.layers.0.mlp.experts"}});  // gpt_oss stores it the other way round
  EXPECT_TRUE(model.experts.empty());
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_NE(model.notes[0].find("gpt_oss"), std::string::npos);
  // mixtral and phimoe call the router differently
  EXPECT_TRUE(
      describe({.names = {"model.layers.0.block_sparse_moe.experts.0.w1", "model.layers.0.block_sparse_moe.gate"}})
          .experts.empty());
  EXPECT_FALSE(describe({.names = {"model.layers.0.block_sparse_moe.experts.0.w1"}}).experts.empty());
}

TEST(FromNames, DenseNamesAreNoExperts) {
  const Model model = describe({.names = {"model.layers.0.self_attn.q_proj"}});
  EXPECT_TRUE(model.experts.empty());
  EXPECT_EQ(model.locate("model.layers.0.self_attn.q_proj"), std::nullopt);
  EXPECT_EQ(model.rename("model.layers.0.self_attn.q_proj", Generation::v4, Generation::v5),
            "model.layers.0.self_attn.q_proj");
}

}  // namespace
}  // namespace peft
