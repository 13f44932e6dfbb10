#include "layout/keys.h"

#include <gtest/gtest.h>

namespace peft::layout {
namespace {

struct Row {
  std::string_view name, module, suffix;
  int depth;
  KeyKind kind;
};

const Row kRows[] = {
    {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj",
     "lora_A.weight", 0, KeyKind::lora_a},
    {"model.layers.0.self_attn.q_proj.lora_B.weight", "model.layers.0.self_attn.q_proj", "lora_B.weight", 0,
     KeyKind::lora_b},
    {"base_model.model.m.experts.base_layer.lora_B.weight", "m.experts", "base_layer.lora_B.weight", 1,
     KeyKind::lora_b},
    {"base_model.model.m.experts.base_layer.base_layer.lora_A.weight", "m.experts",
     "base_layer.base_layer.lora_A.weight", 2, KeyKind::lora_a},
    {"base_model.model.q.lora_A.default.weight", "q", "lora_A.default.weight", 0, KeyKind::lora_a},
    {"base_model.model.q.lora_B.bias", "q", "lora_B.bias", 0, KeyKind::lora_b_bias},
    {"base_model.model.embed_tokens.lora_embedding_A", "embed_tokens", "lora_embedding_A", 0, KeyKind::embedding_a},
    {"base_model.model.embed_tokens.lora_embedding_B", "embed_tokens", "lora_embedding_B", 0, KeyKind::embedding_b},
    {"base_model.model.q.lora_magnitude_vector", "q", "lora_magnitude_vector", 0, KeyKind::magnitude},
    {"base_model.model.q.lora_magnitude_vector.weight", "q", "lora_magnitude_vector.weight", 0, KeyKind::magnitude},
    {"base_model.model.m.embed_tokens.token_adapter.trainable_tokens_delta", "m.embed_tokens",
     "token_adapter.trainable_tokens_delta", 0, KeyKind::token_delta},
    {"base_model.model.q.base_layer.bias", "q", "base_layer.bias", 0, KeyKind::plain},
    {"base_model.model.lm_head.weight", "lm_head", "weight", 0, KeyKind::plain},
    {"base_model.model.q.lora_diag", "q", "lora_diag", 0, KeyKind::other_lora},
    {"lora_unet_x.lora_down.weight", "lora_unet_x", "lora_down.weight", 0, KeyKind::other_lora},
    {"lora_unet_x.alpha", "lora_unet_x", "alpha", 0, KeyKind::other_lora},
    {"weight", "", "weight", 0, KeyKind::plain},
    {"", "", "", 0, KeyKind::plain},
};

TEST(Keys, EveryForm) {
  for (const Row& row : kRows) {
    const Key key = parse_key(row.name);
    EXPECT_EQ(key.module, row.module) << row.name;
    EXPECT_EQ(key.suffix, row.suffix) << row.name;
    EXPECT_EQ(key.depth, row.depth) << row.name;
    EXPECT_EQ(key.kind, row.kind) << row.name;
  }
}

}  // namespace
}  // namespace peft::layout
