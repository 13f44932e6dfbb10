// A composite model and its text class hold the same layers under other names: adapters of either, in either base.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Of the text class, or of the composite one around it.
Json base_config(Json text, bool base_is_text) {
  if (base_is_text) {
    text["architectures"] = {"Qwen3_5MoeForCausalLM"};
    return text;
  }
  return {{"model_type", "qwen3_5_moe"},
          {"architectures", {"Qwen3_5MoeForConditionalGeneration"}},
          {"text_config", text},
          {"tie_word_embeddings", false}};
}

// A composite model and its text class name the same layers with another prefix.
TEST(MergeComposite, AdaptersOfEitherClassIntoEitherBase) {
  constexpr std::int64_t kExperts = 2, kHidden = 8, kIntermediate = 6;
  for (const bool base_is_text : {false, true}) {
    for (const bool adapter_is_text : {false, true}) {
      SCOPED_TRACE(fmt::format("base {}, adapter {}", base_is_text ? "text" : "composite",
                               adapter_is_text ? "text" : "composite"));
      const std::string prefix = base_is_text ? "model." : "model.language_model.",
                        theirs = adapter_is_text ? "model." : "model.language_model.";
      TemporaryFolder folder;
      Draw draw(6);
      const Matrix q = draw.matrix(16, kHidden, 0.125, 30), embed = draw.matrix(17, kHidden, 0.125, 30);
      const Matrix down = draw.matrix(kExperts * kHidden, kIntermediate, 0.125, 30);
      std::vector<Stored> tensors = {
          stored(prefix + "embed_tokens.weight", "BF16", embed),
          stored("lm_head.weight", "BF16", draw.matrix(17, kHidden, 0.125, 30)),
          stored(prefix + "layers.0.self_attn.q_proj.weight", "BF16", q),
          stored(prefix + "layers.0.mlp.experts.down_proj", "BF16", {kExperts, kHidden, kIntermediate}, down.values),
          stored(prefix + "layers.0.mlp.experts.gate_up_proj", "BF16", {kExperts, 2 * kIntermediate, kHidden},
                 draw.matrix(kExperts * 12, kHidden, 1, 4).values),
          stored(prefix + "layers.0.mlp.gate.weight", "BF16", draw.matrix(kExperts, kHidden, 1, 4))};
      if (!base_is_text)
        tensors.push_back(stored("model.visual.merger.linear_fc1.weight", "BF16", draw.matrix(4, 4, 1, 4)));
      const Json text = {{"model_type", "qwen3_5_moe_text"},
                         {"hidden_size", kHidden},
                         {"moe_intermediate_size", kIntermediate},
                         {"shared_expert_intermediate_size", 4},
                         {"num_hidden_layers", 1},
                         {"layer_types", {"full_attention"}},
                         {"num_experts", kExperts},
                         {"num_experts_per_tok", 1},
                         {"num_attention_heads", 2},
                         {"num_key_value_heads", 1},
                         {"head_dim", 4},
                         {"vocab_size", 17},
                         {"tie_word_embeddings", false}};
      write_base(folder / "base", base_config(text, base_is_text), {tensors});

      const ExpertFactors dense{draw.matrix(2, kHidden, 0.5, 3), draw.matrix(16, 2, 0.5, 3)};
      const ExpertFactors rows{draw.matrix(2, 17, 0.5, 3), draw.matrix(kHidden, 2, 0.5, 3)};
      std::vector<ExpertFactors> experts;
      for (std::int64_t e = 0; e < kExperts; ++e)
        experts.push_back({draw.matrix(2, kIntermediate, 0.5, 3), draw.matrix(kHidden, 2, 0.5, 3)});
      const FusedPair fused = fuse(experts, false, false);
      const std::string key = "base_model.model." + theirs;
      write_lora(
          folder / "adapter",
          lora_config(
              2, 4, {{"target_modules", {"q_proj", "embed_tokens"}}, {"target_parameters", {"mlp.experts.down_proj"}}}),
          {stored(key + "layers.0.self_attn.q_proj.lora_A.weight", "F32", dense.a),
           stored(key + "layers.0.self_attn.q_proj.lora_B.weight", "F32", dense.b),
           stored(key + "embed_tokens.lora_embedding_A", "F32", rows.a),
           stored(key + "embed_tokens.lora_embedding_B", "F32", rows.b),
           stored(key + "layers.0.mlp.experts.lora_A.weight", "F32", fused.a),
           stored(key + "layers.0.mlp.experts.lora_B.weight", "F32", fused.b)});
      MergeOptions options;
      options.base = folder / "base";
      options.adapters = {{folder / "adapter", 1}};
      EXPECT_NO_THROW(execute(plan_merge(options).plan, folder / "out"));
      if (!fs::exists(folder / "out")) continue;
      const auto out = tensors_in(folder / "out");
      std::map<std::string, std::vector<double>> want;
      const auto add = [&](const std::string& name, const Matrix& base, const Matrix& delta) {
        for (std::size_t i = 0; i < base.values.size(); ++i)
          want[prefix + name].push_back(nearest_bf16(base.values[i] + 2 * delta.values[i]));
      };
      add("layers.0.self_attn.q_proj.weight", q, product(dense.b, dense.a));
      add("embed_tokens.weight", embed, transposed(product(rows.b, rows.a)));
      for (std::int64_t e = 0; e < kExperts; ++e) {
        add("layers.0.mlp.experts.down_proj", rows_of(down, e * kHidden, kHidden),
            product(experts[static_cast<std::size_t>(e)].b, experts[static_cast<std::size_t>(e)].a));
      }
      ASSERT_EQ(out.size(), tensors.size());
      for (const Stored& tensor : tensors) {
        const auto touched = want.find(tensor.name);
        EXPECT_TRUE(out.at(tensor.name).values == (touched == want.end() ? tensor.values : touched->second))
            << tensor.name;
      }
      EXPECT_TRUE(verify_merged({folder / "out", options, 0}).same);
    }
  }
}

// Rows of the embedding, by the name of either class; the config names the module by its end or by its path.
TEST(MergeComposite, TokensOfEitherClassIntoEitherBase) {
  constexpr std::int64_t kHidden = 8, kVocabulary = 17;
  const std::vector<std::int64_t> ids = {3, 0, 16};
  for (const bool base_is_text : {false, true}) {
    for (const bool adapter_is_text : {false, true}) {
      for (const bool by_path : {false, true}) {
        SCOPED_TRACE(fmt::format("base {}, adapter {}, by {}", base_is_text ? "text" : "composite",
                                 adapter_is_text ? "text" : "composite", by_path ? "path" : "name"));
        const std::string prefix = base_is_text ? "model." : "model.language_model.",
                          theirs = adapter_is_text ? "model." : "model.language_model.";
        TemporaryFolder folder;
        Draw draw(8);
        const Matrix embed = draw.matrix(kVocabulary, kHidden, 0.125, 30), rows = draw.matrix(3, kHidden, 0.125, 30);
        std::vector<Stored> tensors = {
            stored(prefix + "embed_tokens.weight", "BF16", embed),
            stored(prefix + "layers.0.self_attn.q_proj.weight", "BF16", draw.matrix(16, kHidden, 0.125, 30)),
            stored("lm_head.weight", "BF16", draw.matrix(kVocabulary, kHidden, 0.125, 30))};
        const Json text = {{"model_type", "qwen3_5_moe_text"},
                           {"hidden_size", kHidden},
                           {"moe_intermediate_size", 6},
                           {"shared_expert_intermediate_size", 4},
                           {"num_hidden_layers", 1},
                           {"layer_types", {"full_attention"}},
                           {"num_experts", 2},
                           {"num_experts_per_tok", 1},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 1},
                           {"head_dim", 4},
                           {"vocab_size", kVocabulary},
                           {"tie_word_embeddings", false}};
        write_base(folder / "base", base_config(text, base_is_text), {tensors});
        const std::string key = "base_model.model." + theirs;
        write_lora(
            folder / "adapter",
            lora_config(2, 4,
                        {{"target_modules", {"q_proj"}},
                         {"trainable_token_indices", {{by_path ? theirs + "embed_tokens" : "embed_tokens", ids}}}}),
            {stored(key + "embed_tokens.token_adapter.trainable_tokens_delta", "F32", rows),
             stored(key + "layers.0.self_attn.q_proj.lora_A.weight", "F32", draw.matrix(2, kHidden, 0.5, 3)),
             stored(key + "layers.0.self_attn.q_proj.lora_B.weight", "F32", draw.matrix(16, 2, 0.5, 3))});
        MergeOptions options;
        options.base = folder / "base";
        options.adapters = {{folder / "adapter", 1}};
        EXPECT_NO_THROW(execute(plan_merge(options).plan, folder / "out"));
        if (!fs::exists(folder / "out")) continue;
        Matrix want = embed;
        for (std::size_t i = 0; i < ids.size(); ++i) {
          for (std::int64_t j = 0; j < kHidden; ++j) want.at(ids[i], j) = rows.at(static_cast<std::int64_t>(i), j);
        }
        const auto out = tensors_in(folder / "out");
        EXPECT_TRUE(out.at(prefix + "embed_tokens.weight").values == want.values);
        EXPECT_TRUE(out.at("lm_head.weight").bytes == tensors[2].bytes);
        EXPECT_FALSE(out.at(prefix + "layers.0.self_attn.q_proj.weight").bytes == tensors[1].bytes);
        EXPECT_TRUE(verify_merged({folder / "out", options, 0}).same);
      }
    }
  }
}

// Of qwen3_vl_moe no loader reads the layers of one class into the other, and its text class has no head: an adapter of
// the other class is named and refused, one of the base's own is merged.
TEST(MergeComposite, AnotherClassThatNoLoaderKnowsIsRefused) {
  constexpr std::int64_t kHidden = 8, kIntermediate = 6, kExperts = 2;
  for (const std::string base_prefix : {"model.language_model.", ""}) {
    for (const std::string prefix : {"model.language_model.", "", "model."}) {
      SCOPED_TRACE(fmt::format("base \"{}\", adapter \"{}\"", base_prefix, prefix));
      TemporaryFolder folder;
      Draw draw(9);
      const Matrix q = draw.matrix(8, kHidden, 0.125, 30),
                   down = draw.matrix(kExperts * kIntermediate, kHidden, 0.125, 30);
      std::vector<Stored> tensors = {
          stored(base_prefix + "embed_tokens.weight", "BF16", draw.matrix(17, kHidden, 0.125, 30)),
          stored(base_prefix + "layers.0.self_attn.q_proj.weight", "BF16", q),
          stored(base_prefix + "layers.0.mlp.gate.weight", "BF16", draw.matrix(kExperts, kHidden, 1, 4)),
          stored(base_prefix + "layers.0.mlp.experts.down_proj", "BF16", {kExperts, kIntermediate, kHidden},
                 down.values)};
      Json config = {{"model_type", "qwen3_vl_moe_text"},
                     {"architectures", {"Qwen3VLMoeTextModel"}},
                     {"hidden_size", kHidden},
                     {"moe_intermediate_size", kIntermediate},
                     {"intermediate_size", 10},
                     {"num_hidden_layers", 1},
                     {"num_experts", kExperts},
                     {"num_local_experts", kExperts},
                     {"num_experts_per_tok", 1},
                     {"num_attention_heads", 2},
                     {"num_key_value_heads", 1},
                     {"head_dim", 4},
                     {"vocab_size", 17},
                     {"decoder_sparse_step", 1},
                     {"mlp_only_layers", Json::array()}};
      if (!base_prefix.empty()) {
        config = {{"model_type", "qwen3_vl_moe"},
                  {"architectures", {"Qwen3VLMoeForConditionalGeneration"}},
                  {"text_config", config}};
        tensors.push_back(stored("lm_head.weight", "BF16", draw.matrix(17, kHidden, 0.125, 30)));
        tensors.push_back(stored("model.visual.merger.linear_fc1.weight", "BF16", draw.matrix(4, 4, 1, 4)));
      }
      write_base(folder / "base", config, {tensors});
      const ExpertFactors dense{draw.matrix(2, kHidden, 0.5, 3), draw.matrix(8, 2, 0.5, 3)};
      std::vector<ExpertFactors> experts;  // of [E, in, out]: PEFT takes the stored matrix as it lies
      for (std::int64_t e = 0; e < kExperts; ++e)
        experts.push_back({draw.matrix(2, kHidden, 0.5, 3), draw.matrix(kIntermediate, 2, 0.5, 3)});
      const FusedPair fused = fuse(experts, false, false);
      const std::string key = "base_model.model." + prefix;
      write_lora(folder / "adapter",
                 lora_config(2, 4, {{"target_modules", {"q_proj"}}, {"target_parameters", {"mlp.experts.down_proj"}}}),
                 {stored(key + "layers.0.self_attn.q_proj.lora_A.weight", "F32", dense.a),
                  stored(key + "layers.0.self_attn.q_proj.lora_B.weight", "F32", dense.b),
                  stored(key + "layers.0.mlp.experts.lora_A.weight", "F32", fused.a),
                  stored(key + "layers.0.mlp.experts.lora_B.weight", "F32", fused.b)});
      MergeOptions options;
      options.base = folder / "base";
      options.adapters = {{folder / "adapter", 1}};
      if (prefix != base_prefix) {
        const Error error = expect_error("another class", [&] { plan_merge(options); });
        EXPECT_EQ(error.code(), ErrorCode::LO_TARGET) << error.what();
        EXPECT_THAT(error.what(), HasSubstr(key + "layers.0.self_attn.q_proj.lora_A.weight"));
        continue;
      }
      execute(plan_merge(options).plan, folder / "out");
      const auto out = tensors_in(folder / "out");
      const auto sum = [](const Matrix& base, const Matrix& delta) {
        std::vector<double> values;
        for (std::size_t i = 0; i < base.values.size(); ++i)
          values.push_back(nearest_bf16(base.values[i] + 2 * delta.values[i]));
        return values;
      };
      EXPECT_TRUE(out.at(prefix + "layers.0.self_attn.q_proj.weight").values == sum(q, product(dense.b, dense.a)));
      Matrix deltas(kExperts * kIntermediate, kHidden);
      for (std::int64_t e = 0; e < kExperts; ++e) {
        const Matrix delta = product(experts[static_cast<std::size_t>(e)].b, experts[static_cast<std::size_t>(e)].a);
        std::copy(delta.values.begin(), delta.values.end(), deltas.values.begin() + e * kIntermediate * kHidden);
      }
      EXPECT_TRUE(out.at(prefix + "layers.0.mlp.experts.down_proj").values == sum(down, deltas));
      EXPECT_EQ(out.size(), tensors.size());
      EXPECT_TRUE(verify_merged({folder / "out", options, 0}).same);
    }
  }
}

}  // namespace
}  // namespace peft::testing
