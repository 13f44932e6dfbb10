// describe() of a config.json alone.
#include <gtest/gtest.h>

#include "model/families/families.h"
#include "model/families/index.h"
#include "peft/model.h"
#include "support/model_files.h"

namespace peft {
namespace {

using test::code_of;
using test::scratch_file;

Model from_config(const std::string& text, const std::string& family = {}) {
  return describe({.base = scratch_file("config.json", text), .family = family});
}

TEST(FromConfig, BothSpellingsOfTheExperts) {
  for (const char* key : {"num_experts", "num_local_experts"}) {
    const Model model =
        from_config(std::string(R"({"model_type": "qwen3_moe", "hidden_size": 40, "moe_intermediate_size": 12,
      "num_hidden_layers": 3, "mlp_only_layers": [1], "decoder_sparse_step": 1, ")") +
                    key + R"(": 8})");
    ASSERT_EQ(model.experts.size(), 2u);
    EXPECT_EQ(model.experts[1].layer, 2);
    EXPECT_EQ(model.experts[1].num_experts, 8);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.2.mlp.experts"), true);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.1.mlp.experts"), false);
    EXPECT_EQ(model.has(Generation::v4, "model.layers.0.mlp.experts.7.up_proj"), true);
    EXPECT_EQ(model.has(Generation::v4, "model.layers.0.mlp.experts.8.up_proj"), false);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.1.mlp.gate_proj"), true);
  }
}

TEST(FromConfig, RulesOfTheLayers) {
  const auto layers = [](const std::string& config) {
    std::vector<std::int64_t> result;
    for (const Experts& experts : from_config(config).experts) result.push_back(experts.layer);
    return result;
  };
  using Layers = std::vector<std::int64_t>;
  EXPECT_EQ(layers(R"({"model_type": "deepseek_v3", "num_hidden_layers": 5, "first_k_dense_replace": 2})"),
            (Layers{2, 3, 4}));
  EXPECT_EQ(
      layers(R"({"model_type": "jamba", "num_hidden_layers": 5, "expert_layer_period": 2, "expert_layer_offset": 1})"),
      (Layers{1, 3}));
  EXPECT_EQ(layers(R"({"model_type": "ernie4_5_moe", "num_hidden_layers": 6, "moe_layer_interval": 2,
                      "moe_layer_start_index": 1, "moe_layer_end_index": 4})"),
            (Layers{1, 3}));
  EXPECT_EQ(layers(R"({"model_type": "llama4_text", "num_hidden_layers": 4, "moe_layers": [1, 3]})"), (Layers{1, 3}));
  EXPECT_EQ(
      layers(
          R"({"model_type": "dots3_note_text", "num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "dense"]})"),
      (Layers{1}));
  // the other generation's key
  EXPECT_EQ(layers(R"({"model_type": "dots3_note_text", "num_hidden_layers": 3, "first_k_dense_replace": 2})"),
            (Layers{2}));
}

TEST(FromConfig, LayersOfDifferentKinds) {
  const Model model = from_config(R"({"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text",
    "num_hidden_layers": 4, "full_attention_interval": 4, "hidden_size": 40, "num_experts": 4, "moe_intermediate_size": 8}})");
  EXPECT_FALSE(model.v4);
  EXPECT_TRUE(model.base_is_v5_only);
  EXPECT_EQ(model.experts.size(), 4u);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.0.linear_attn.out_proj"), true);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.3.self_attn.q_proj"), true);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.0.self_attn.q_proj"), false);
  // A key that is left out is as the class has it: every fourth layer.
  const Model usual = from_config(R"({"model_type": "qwen3_next", "num_hidden_layers": 4})");
  EXPECT_EQ(usual.has(Generation::v5, "model.layers.0.linear_attn.out_proj"), true);
  EXPECT_EQ(usual.has(Generation::v5, "model.layers.3.linear_attn.out_proj"), false);
}

TEST(FromConfig, AbsurdNumbersAreRefused) {
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 1000000, "num_local_experts": 8})");
            }),
            ErrorCode::MD_FORM);
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 1000000000})");
            }),
            ErrorCode::MD_FORM);
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 9000, "num_local_experts": 90000})");
            }),
            ErrorCode::MD_FORM);
  const std::string deep = std::string(500, '[') + std::string(500, ']');
  EXPECT_EQ(code_of([&] { from_config(R"({"model_type": "mixtral", "x": )" + deep + "}"); }), ErrorCode::ST_DEPTH);
  EXPECT_TRUE(from_config(R"({"model_type": "mixtral", "num_hidden_layers": -3, "num_local_experts": "many"})")
                  .experts.empty());
}

TEST(FromConfig, FamilyMustAgree) {
  const std::string text = R"({"model_type": "mixtral", "num_hidden_layers": 1})";
  EXPECT_EQ(from_config(text, "mixtral").experts.size(), 1u);
  EXPECT_EQ(code_of([&] { from_config(text, "qwen3_moe"); }), ErrorCode::MD_FAMILY);
  EXPECT_EQ(from_config(R"({"model_type": "my_own_moe", "num_hidden_layers": 1})", "mixtral").experts.size(), 1u);
}

// Measured with transformers 4.57.6 and 5.24.0 on configs with such layers; the default models have none.
TEST(FromConfig, LayersWithoutExpertsHaveTheirMlp) {
  EXPECT_TRUE(model::load_table()->dense_layers.contains("qwen3_omni_moe"));
  for (const auto& [type, linears] : (model::load_table())->dense_layers) {
    SCOPED_TRACE(type);
    const bool is_llama = type.starts_with("llama4");
    const std::string text =
        is_llama
            ? R"("num_hidden_layers": 2, "moe_layers": [1], "interleave_moe_layer_step": 1, "num_local_experts": 4,)"
            : R"("num_hidden_layers": 2, "mlp_only_layers": [0], "decoder_sparse_step": 1, "first_k_dense_replace": 1, "num_experts": 4,
                                           "num_local_experts": 4, "n_routed_experts": 4,)";
    const std::string sizes =
        R"("hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4, "vocab_size": 64)";
    const bool composite = type == "qwen3_vl_moe" || type == "llama4" || type == "qwen3_omni_moe_thinker";
    const std::string body = text + sizes;
    std::string config = composite ? R"("text_config": {)" + body + "}" : body;
    if (type == "qwen3_omni_moe") {  // the talker, narrower, has experts in all layers, whatever its config says
      const std::string talker = R"("text_config": {"hidden_size": 8, "intermediate_size": 4, "vocab_size": 64,)" +
                                 text + R"("num_attention_heads": 4, "moe_intermediate_size": 16})";
      config = R"("talker_config": {)" + talker + R"(}, "thinker_config": {"text_config": {)" + body + "}}";
    }
    const Model model =
        describe({.base = scratch_file("layers.json", R"({"model_type": ")" + type + R"(", )" + config + "}")});
    EXPECT_EQ(model.index->find_known(Generation::v5, "talker.model.layers.0.mlp.gate_proj"), nullptr);
    for (const auto& tree : {model.v4, model.v5}) {
      if (!tree) continue;
      std::vector<std::string> found;
      for (const Module& module : tree->modules) {
        if (module.name.ends_with("mlp.gate_proj") || module.name.ends_with("feed_forward.gate_proj"))
          found.push_back(module.name);
        if (found.size() == 1 && found.back() == module.name && !is_llama) {
          EXPECT_EQ(module.weight, (std::vector<std::int64_t>{48, 32}));
        }
      }
      ASSERT_EQ(found.size(), 1u);
      EXPECT_NE(found.front().find("layers.0."), std::string::npos) << found.front();
    }
  }
}

}  // namespace
}  // namespace peft
