// What an adapter does beside adding to matrices: embeddings that are one tensor or two, whole modules, rows, biases,
// magnitudes.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "support/judge.h"
#include "support/tiny_moe.h"

namespace peft::testing {
namespace {

using ::testing::HasSubstr;
using Output = TinyMoe::Output;

constexpr const char* kInput = "model.embed_tokens";
constexpr auto V = TinyMoe::kVocabulary, H = TinyMoe::kHidden;

bool is_tied(const TinyMoe& model) { return model.merged_config().at("tie_word_embeddings").get<bool>(); }

TEST(MergeTied, LoraOnTheInputAloneLeavesTheOutput) {
  for (const Output output : {Output::tied, Output::tied_and_stored, Output::own}) {
    const TinyMoe model("BF16", output);
    model.write_base_folder();
    Lora lora(model, 2, 4, 1);
    lora.embedding(kInput);
    lora.write("adapter", {{"target_modules", {"embed_tokens"}}});
    const auto out = model.merge(model.options());
    auto effects = lora.effects();
    if (output != Output::own) effects["lm_head.weight"] = model.at("model.embed_tokens.weight").values;
    expect_merged(model, out, effects);
    EXPECT_FALSE(is_tied(model)) << "the embedding of the merged model would be its output too";
    expect_verified(model, model.options());
  }
}

TEST(MergeTied, LoraOnTheOutputAloneLeavesTheInput) {
  for (const Output output : {Output::tied, Output::tied_and_stored, Output::own}) {
    const TinyMoe model("BF16", output);
    model.write_base_folder();
    Lora lora(model, 2, 4, 1);
    lora.linear("lm_head", false, false, output == Output::own ? "lm_head.weight" : "model.embed_tokens.weight");
    lora.write("adapter", {{"target_modules", {"lm_head"}}});
    const auto out = model.merge(model.options());
    expect_merged(model, out, {{"lm_head.weight", lora.effects().begin()->second}});
    EXPECT_FALSE(is_tied(model));
    expect_verified(model, model.options());
  }
}

TEST(MergeTied, LoraOnBothGivesTwoTensors) {
  for (const Output output : {Output::tied, Output::tied_and_stored}) {
    const TinyMoe model("F32", output);
    model.write_base_folder();
    Lora in(model, 2, 4, 1), out_side(model, 2, 4, 2);
    in.embedding(kInput);
    out_side.linear("lm_head", false, false, "model.embed_tokens.weight");
    in.tensors().insert(in.tensors().end(), out_side.tensors().begin(), out_side.tensors().end());
    in.write("adapter", {{"target_modules", {"embed_tokens", "lm_head"}}});
    const auto out = model.merge(model.options());
    expect_merged(model, out,
                  {{"model.embed_tokens.weight", in.effects().begin()->second},
                   {"lm_head.weight", out_side.effects().begin()->second}});
    EXPECT_FALSE(is_tied(model));
    expect_verified(model, model.options());
  }
}

TEST(MergeTied, DoraOnTheOutput) {
  const TinyMoe model("F32", Output::tied);
  model.write_base_folder();
  Lora lora(model, 2, 4, 1);
  lora.linear("lm_head", true, false, "model.embed_tokens.weight");
  lora.write("adapter", {{"target_modules", {"lm_head"}}, {"use_dora", true}});
  const auto out = model.merge(model.options());
  expect_merged(model, out, {{"lm_head.weight", lora.effects().begin()->second}}, true);
  EXPECT_FALSE(is_tied(model));
}

TEST(MergeSaved, ModulesTakeThePlaceOfTheBasesOnATiedBaseToo) {
  for (const Output output : {Output::tied, Output::tied_and_stored, Output::own}) {
    for (const std::string side : {"lm_head", "embed_tokens", "both"}) {
      SCOPED_TRACE(side);
      const TinyMoe model("BF16", output);
      model.write_base_folder();
      Lora lora(model, 2, 4, 1);
      lora.linear("model.layers.0.self_attn.q_proj");
      if (side != "embed_tokens") lora.saved("lm_head", "weight", V, H);
      if (side != "lm_head") lora.saved(kInput, "weight", V, H);
      const Json saved = side == "both" ? Json{"lm_head", "embed_tokens"} : Json{side};
      lora.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"modules_to_save", saved}});
      const auto out = model.merge(model.options());
      auto effects = lora.effects();
      if (side == "embed_tokens" && output == Output::tied)
        effects["lm_head.weight"] = model.at("model.embed_tokens.weight").values;
      expect_merged(model, out, effects);
      EXPECT_FALSE(is_tied(model));
      expect_verified(model, model.options());
    }
  }
}

// The config says tied, and the file has an output of its own values: transformers 5 uses both, transformers 4 would
// tie.
TEST(MergeTiedButDifferent, BothEmbeddingsAreUsedAndTheConfigSaysSo) {
  for (const std::string side : {"q_proj", "embed_tokens", "lm_head", "saved embed_tokens", "tokens"}) {
    SCOPED_TRACE(side);
    TinyMoe model("BF16", Output::own);
    model.config["tie_word_embeddings"] = true;
    model.write_base_folder();
    Lora lora(model, 2, 4, 1);
    Json config = {{"target_modules", {"layers.0.self_attn.q_proj"}}};
    if (side == "embed_tokens") {
      lora.embedding(kInput);
      config["target_modules"] = {"embed_tokens"};
    } else if (side == "lm_head") {
      lora.linear("lm_head");
      config["target_modules"] = {"lm_head"};
    } else {
      lora.linear("model.layers.0.self_attn.q_proj");
    }
    if (side == "saved embed_tokens") {
      lora.saved(kInput, "weight", V, H);
      config["modules_to_save"] = {"embed_tokens"};
    }
    if (side == "tokens") {
      lora.tokens(kInput, {3, 0});
      config["trainable_token_indices"] = {{"embed_tokens", {3, 0}}};
    }
    lora.write("adapter", config);
    const MergePlan plan = plan_merge(model.options());
    EXPECT_THAT(plan.plan.warnings, ::testing::Contains(HasSubstr("both are used, as transformers 5 does")));
    EXPECT_FALSE(plan.untied);
    const auto out = model.merge(model.options());
    EXPECT_FALSE(is_tied(model)) << "transformers 4 would drop lm_head.weight";
    if (side != "tokens") {
      expect_merged(model, out, lora.effects());
    } else {  // PEFT puts the rows into both, other values or not
      auto effects = lora.effects();
      auto rows = model.at("lm_head.weight").values;
      for (const std::int64_t id : {3, 0}) {
        const auto& from = effects.at("model.embed_tokens.weight");
        std::copy_n(from.begin() + id * H, H, rows.begin() + id * H);
      }
      effects["lm_head.weight"] = rows;
      expect_merged(model, out, effects);
    }
    expect_verified(model, model.options());
  }
}

TEST(MergeSaved, RouterAndNorm) {
  const TinyMoe model("F16");
  model.write_base_folder();
  Lora lora(model, 2, 4, 1);
  lora.linear("model.layers.0.self_attn.q_proj");
  lora.saved("model.layers.1.mlp.gate", "weight", TinyMoe::kExperts, H);
  lora.saved("model.norm", "weight", 1, H);
  lora.write("adapter",
             {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"modules_to_save", {"1.mlp.gate", "model.norm"}}});
  expect_merged(model, model.merge(model.options()), lora.effects());
  expect_verified(model, model.options());
}

// The rows are of the embedding and of the output that is tied to it: PEFT ties its layer too.
TEST(MergeTokens, RowsOfBothSidesOfATiedBase) {
  for (const Output output : {Output::tied, Output::tied_and_stored, Output::own}) {
    const TinyMoe model("BF16", output);
    model.write_base_folder();
    Lora lora(model, 2, 4, 1);
    lora.linear("model.layers.1.self_attn.v_proj");
    lora.tokens(kInput, {3, 0, 16});
    lora.write("adapter", {{"target_modules", {"layers.1.self_attn.v_proj"}},
                           {"trainable_token_indices", {{"embed_tokens", {3, 0, 16}}}}});
    const auto out = model.merge(model.options());
    auto effects = lora.effects();
    if (output == Output::tied_and_stored) effects["lm_head.weight"] = effects.at("model.embed_tokens.weight");
    expect_merged(model, out, effects);
    EXPECT_EQ(is_tied(model), output != Output::own);
    expect_verified(model, model.options());
  }
}

TEST(MergeBiases, LoraBiasAndTheBiasesOfTheBase) {
  const TinyMoe model("F32");
  model.write_base_folder();
  Lora lora(model, 2, 3, 1);
  lora.linear("model.layers.0.self_attn.q_proj", false, true);
  lora.linear("model.layers.1.self_attn.q_proj", false, true);
  lora.write("adapter", {{"target_modules", {"q_proj"}}, {"lora_bias", true}});
  expect_merged(model, model.merge(model.options()), lora.effects());
  expect_verified(model, model.options());

  Lora all(model, 2, 3, 2);
  all.linear("model.layers.0.self_attn.k_proj");
  all.saved("model.layers.0.self_attn.k_proj", "bias", 1, TinyMoe::kOut, "base_layer.bias");
  all.saved("model.layers.1.self_attn.o_proj", "bias", 1, TinyMoe::kOut);
  all.write("adapter", {{"target_modules", {"layers.0.self_attn.k_proj"}}, {"bias", "all"}});
  expect_merged(model, model.merge(model.options()), all.effects());
  expect_verified(model, model.options());
}

TEST(MergeDora, ExpertsByThemselvesIntoEitherBase) {
  for (const std::string dtype : {"F32", "BF16"}) {
    const TinyMoe model(dtype);
    model.write_base_folder();
    Lora lora(model, 2, 3, 1);
    for (const char* module : {"0.gate_proj", "1.up_proj", "1.down_proj"})
      lora.linear(std::string("model.layers.1.mlp.experts.") + module, true);
    lora.linear("model.layers.0.self_attn.o_proj", true);
    const Json targets = {"layers.1.mlp.experts.0.gate_proj", "experts.1.up_proj", "experts.1.down_proj",
                          "layers.0.self_attn.o_proj"};
    lora.write("adapter", {{"target_modules", targets}, {"use_dora", true}, {"peft_version", "0.18.1"}});
    const MergePlan plan = plan_merge(model.options());
    EXPECT_EQ(std::count_if(plan.parts.begin(), plan.parts.end(), [](const MergedPart& part) { return part.dora; }), 4);
    expect_merged(model, model.merge(model.options()), lora.effects(), true);
    expect_verified(model, model.options());

    // The same experts, stacked as transformers 5 has them.
    TinyMoe fused(dtype, Output::own, TinyMoe::Experts::fused);
    std::map<std::string, std::vector<double>> effects;
    for (std::int64_t l = 0; l < TinyMoe::kLayers; ++l) {
      const std::string experts = fmt::format("model.layers.{}.mlp.experts.", l);
      for (const bool down : {true, false}) {
        Stored& stack = fused.tensors.at(experts + (down ? "down_proj" : "gate_up_proj"));
        std::vector<double> before, after;
        for (std::int64_t e = 0; e < TinyMoe::kExperts; ++e) {
          for (const char* own : down ? std::vector{"down_proj"} : std::vector{"gate_proj", "up_proj"}) {
            const std::string name = fmt::format("{}{}.{}.weight", experts, e, own);
            const auto& base = model.at(name).values;
            const auto& merged = lora.effects().contains(name) ? lora.effects().at(name) : base;
            before.insert(before.end(), base.begin(), base.end());
            after.insert(after.end(), merged.begin(), merged.end());
          }
        }
        stack = stored(stack.name, dtype, stack.shape, before);
        if (before != after) effects[stack.name] = after;
      }
    }
    for (const auto& [name, tensor] : model.tensors) {
      if (fused.tensors.contains(name)) fused.tensors.at(name) = tensor;
    }
    effects["model.layers.0.self_attn.o_proj.weight"] = lora.effects().at("model.layers.0.self_attn.o_proj.weight");
    fused.write_base_folder();
    MergeOptions options = fused.options();
    options.adapters.front().path = model.folder / "adapter";
    expect_merged(fused, fused.merge(options), effects, true);
    expect_verified(fused, options);
  }
}

TEST(MergeDora, FusedExpertsHaveNoMagnitudes) {
  const TinyMoe model("F32", Output::own, TinyMoe::Experts::fused);
  model.write_base_folder();
  Lora lora(model, 2, 3, 1);
  lora.expert_parameter("model.layers.0.mlp.experts", "down_proj");
  lora.tensors().push_back(stored("base_model.model.model.layers.0.mlp.experts.lora_magnitude_vector", "F32", {H},
                                  std::vector<double>(8, 1)));
  lora.write("adapter", {{"target_parameters", {"layers.0.mlp.experts.down_proj"}}, {"use_dora", true}});
  const Error error = expect_error("fused DoRA", [&] { plan_merge(model.options()); });
  EXPECT_EQ(error.code(), ErrorCode::CF_UNSUP) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("DoRA"));
}

}  // namespace
}  // namespace peft::testing
