// MLX-LM's names of modules, in every form that its models have. Source: models/*.py of 0.32.2.
#include "layout/mlx/names.h"

#include <gtest/gtest.h>

namespace peft::layout {
namespace {

struct Row {
  const char *model_type, *experts;  // of transformers 5, as the family table has it
  const char* up;                    // the switch layer
  const char *dense, *mlx_dense;     // a module beside
};
constexpr Row kRows[] = {
    {"mixtral", "model.layers.11.mlp.experts", "model.layers.11.block_sparse_moe.switch_mlp.up_proj",
     "model.layers.11.mlp.gate", "model.layers.11.block_sparse_moe.gate"},
    {"phimoe", "model.layers.2.mlp.experts", "model.layers.2.block_sparse_moe.switch_mlp.up_proj",
     "model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.q_proj"},
    {"granitemoe", "model.layers.2.block_sparse_moe.experts", "model.layers.2.block_sparse_moe.switch_mlp.up_proj",
     "model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.q_proj"},
    {"minimax_m2", "model.layers.2.mlp.experts", "model.layers.2.block_sparse_moe.switch_mlp.up_proj",
     "model.layers.2.mlp.gate", "model.layers.2.block_sparse_moe.gate"},
    {"qwen3_moe", "model.layers.0.mlp.experts", "model.layers.0.mlp.switch_mlp.up_proj", "model.layers.0.mlp.gate",
     "model.layers.0.mlp.gate"},
    {"deepseek_v3", "model.layers.3.mlp.experts", "model.layers.3.mlp.switch_mlp.up_proj",
     "model.layers.3.mlp.shared_experts.up_proj", "model.layers.3.mlp.shared_experts.up_proj"},
    {"gpt_oss", "model.layers.1.mlp.experts", "model.layers.1.mlp.experts.up_proj", "model.layers.1.mlp.router",
     "model.layers.1.mlp.router"},
    {"llama4", "language_model.model.layers.1.feed_forward.experts",
     "language_model.model.layers.1.feed_forward.experts.up_proj", "language_model.model.layers.1.self_attn.q_proj",
     "language_model.model.layers.1.self_attn.q_proj"},
    {"qwen3_5_moe", "model.language_model.layers.1.mlp.experts", "language_model.model.layers.1.mlp.switch_mlp.up_proj",
     "model.language_model.layers.1.self_attn.q_proj", "language_model.model.layers.1.self_attn.q_proj"},
    {"gemma4", "model.language_model.layers.1.experts", "language_model.model.layers.1.experts.switch_glu.up_proj",
     "model.language_model.layers.1.self_attn.q_proj", "language_model.model.layers.1.self_attn.q_proj"},
    {"gemma4_text", "model.layers.1.experts", "model.layers.1.experts.switch_glu.up_proj", "model.layers.1.mlp.up_proj",
     "model.layers.1.mlp.up_proj"},
    {"nemotron_h", "model.layers.1.mixer.experts", "backbone.layers.1.mixer.switch_mlp.fc1",
     "model.layers.1.mixer.gate", "backbone.layers.1.mixer.gate"},
    {"jamba", "model.layers.1.feed_forward.experts", "model.layers.1.feed_forward.switch_mlp.up_proj",
     "model.layers.1.mamba.in_proj", "model.layers.1.mamba.in_proj"},
    {"lfm2_moe", "model.layers.2.feed_forward.experts", "model.layers.2.feed_forward.switch_mlp.up_proj",
     "model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.q_proj"},
    {"lfm2_moe", "model.layers.2.feed_forward.experts", "model.layers.2.feed_forward.switch_mlp.up_proj",
     "model.layers.0.feed_forward.w3", "model.layers.0.feed_forward.up_proj"},
};

TEST(MlxNames, OfEveryFormThereAndBack) {
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.model_type);
    const Model model = describe({.family = row.model_type, .num_experts = 12, .names = {row.experts}});
    const Experts* experts = experts_at(model, row.experts);
    ASSERT_NE(experts, nullptr);
    EXPECT_EQ(switch_name(model, *experts, Projection::up), row.up);
    const auto parsed = parse_switch_name(row.up);
    ASSERT_TRUE(parsed.has_value());
    EXPECT_EQ(parsed->projection, Projection::up);
    EXPECT_EQ(experts_at(model, parsed->experts), experts) << parsed->experts;
    EXPECT_EQ(to_mlx(model, row.dense), row.mlx_dense);
    const std::string back = from_mlx(model, row.mlx_dense);
    EXPECT_EQ(model.rename(back, Generation::v4, Generation::v5), row.dense) << back;
  }
}

// Names that stand before the layers, or in the place of "layers", where nothing but the type tells.
TEST(MlxNames, OfDenseModels) {
  const struct {
    const char *model_type, *embedding, *name, *mlx;
  } rows[] = {
      {"gpt_neox", "gpt_neox.embed_in", "gpt_neox.layers.3.attention.dense", "model.h.3.attention.dense"},
      {"mamba", "backbone.embeddings", "backbone.layers.3.mixer.in_proj", "backbone.layers.3.mixer.in_proj"},
      {"llava", "model.language_model.embed_tokens", "model.language_model.layers.3.self_attn.q_proj",
       "language_model.model.layers.3.self_attn.q_proj"},
      {"kimi_k25", "model.language_model.embed_tokens", "model.language_model.layers.3.mlp.up_proj",
       "language_model.model.layers.3.mlp.up_proj"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.model_type);
    Model model;
    model.model_type = row.model_type;
    model.v5.emplace().input_embedding = row.embedding;
    EXPECT_EQ(to_mlx(model, row.name), row.mlx);
    EXPECT_EQ(from_mlx(model, row.mlx), row.name);
  }
}

TEST(MlxNames, OfModulesThatMlxDoesNotHave) {
  const auto missing = [](const char* model_type, const char* module) {
    Model model;
    model.model_type = model_type;
    return !missing_in_mlx(model, module).empty();
  };
  EXPECT_TRUE(missing("deepseek_v3", "model.layers.3.self_attn.kv_b_proj"));
  EXPECT_FALSE(missing("deepseek_v3", "model.layers.3.self_attn.kv_a_proj_with_mqa"));
  EXPECT_FALSE(missing("deepseek_v2", "model.layers.3.self_attn.kv_b_proj"));
  EXPECT_TRUE(missing("minimax_m3_vl", "model.language_model.layers.3.mlp.shared_experts.gate_up_proj"));
  EXPECT_TRUE(missing("llama4_text", "model.layers.1.feed_forward.experts"));
  EXPECT_TRUE(missing("llama4_text", "model.layers.1.feed_forward.shared_expert.up_proj"));
  EXPECT_FALSE(missing("llama4_text", "model.layers.0.feed_forward.up_proj"));
  EXPECT_FALSE(missing("llama4", "model.language_model.layers.1.feed_forward.experts"));
}

TEST(MlxNames, OfOtherModulesAreNoSwitchLayers) {
  for (const char* name : {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.switch_mlp.gate", "switch_mlp.up_proj",
                           "model.layers.0.mlp.xswitch_mlp.up_proj", "lm_head", ""})
    EXPECT_FALSE(parse_switch_name(name).has_value()) << name;
}

}  // namespace
}  // namespace peft::layout
