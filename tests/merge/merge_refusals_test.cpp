// What a merge refuses while it plans, by name.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/execute.h"
#include "support/judge.h"
#include "support/model_writer.h"
#include "support/tiny_moe.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kQ = "model.layers.0.self_attn.q_proj";

struct Refusal {
  TinyMoe model;
  explicit Refusal(TinyMoe::Output output = TinyMoe::Output::own) : model("F32", output) { model.write_base_folder(); }
  Lora plain() const {
    Lora lora(model, 2, 4, 1);
    lora.linear(kQ);
    return lora;
  }
  Error refused(const MergeOptions& options) const {
    return expect_error("a merge", [&] { plan_merge(options); });
  }
};

TEST(MergeRefuses, AdaptersOfAChangedBase) {
  const Refusal fixture;
  for (const char* init : {"pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"}) {
    Lora lora = fixture.plain();
    Json changes = {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"init_lora_weights", init}};
    if (std::string(init) == "loftq") changes["loftq_config"] = {{"loftq_bits", 4}};
    if (std::string(init) == "lora_ga") changes["lora_ga_config"] = Json::object();
    lora.write("adapter", changes);
    const Error error = fixture.refused(fixture.model.options());
    EXPECT_EQ(error.code(), ErrorCode::LO_INIT) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(init));
    MergeOptions options = fixture.model.options();
    options.base_is_residual = true;
    expect_merged(fixture.model, fixture.model.merge(options), lora.effects());
  }
  for (const char* init : {"gaussian", "eva", "orthogonal"}) {  // the base is what it was
    Lora lora = fixture.plain();
    lora.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"init_lora_weights", init}});
    expect_merged(fixture.model, fixture.model.merge(fixture.model.options()), lora.effects());
  }
}

TEST(MergeRefuses, WeightsPackedInOtherForms) {
  for (const std::string packed : {"qweight", "weight_packed", "weight.absmax", "SCB"}) {
    TinyMoe model("F32");
    Lora lora(model, 2, 4, 1);
    lora.linear(kQ);
    lora.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}});
    model.tensors.erase(kQ + ".weight");
    const std::string name = kQ + "." + packed;
    model.tensors.emplace(name, stored_bytes(name, "I32", {2, 8}, std::string(64, '\1')));
    model.write_base_folder();
    const Error error = expect_error(packed, [&] { plan_merge(model.options()); });
    EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(kQ));
  }
}

// An adapter of another layer passes: what it does not touch may be packed in whatever way.
TEST(MergeRefuses, OnlyPackedWeightsThatAreTouched) {
  TinyMoe model("F32");
  Lora lora(model, 2, 4, 1);
  lora.linear(kQ);
  lora.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}});
  const std::string other = "model.layers.1.self_attn.q_proj.";
  model.tensors.erase(other + "weight");
  model.tensors.emplace(other + "qweight", stored_bytes(other + "qweight", "I32", {2, 8}, std::string(64, '\2')));
  // Bytes and packed codes are no numbers to add to.
  const std::string bytes = "model.layers.1.self_attn.k_proj.weight";
  model.tensors[bytes] = stored_bytes(bytes, "U8", {8, 4}, std::string(32, '\3'));
  model.write_base_folder();
  expect_merged(model, model.merge(model.options()), lora.effects());
  Lora on_bytes(model, 2, 4, 1);
  on_bytes.tensors().push_back(
      stored("base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight", "F32", Draw(1).matrix(2, 4, 1, 3)));
  on_bytes.tensors().push_back(
      stored("base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight", "F32", Draw(2).matrix(8, 2, 1, 3)));
  on_bytes.write("adapter", {{"target_modules", {"layers.1.self_attn.k_proj"}}});
  const Error error = expect_error("bytes", [&] { plan_merge(model.options()); });
  EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
  EXPECT_THAT(error.what(), HasSubstr(bytes));
}

TEST(MergeRefuses, AnotherVocabulary) {
  const Refusal fixture;
  constexpr std::int64_t kMore = TinyMoe::kVocabulary + 3;
  const std::string key = "base_model.model.model.embed_tokens.lora_embedding_";
  Lora pair = fixture.plain();
  pair.tensors().push_back(stored(key + "A", "F32", Draw(1).matrix(2, kMore, 1, 3)));
  pair.tensors().push_back(stored(key + "B", "F32", Draw(2).matrix(TinyMoe::kHidden, 2, 1, 3)));
  pair.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj", "embed_tokens"}}});
  Error error = fixture.refused(fixture.model.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_VOCAB) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("embed_tokens"));

  for (const std::string side : {"lm_head", "model.embed_tokens"}) {
    Lora saved = fixture.plain();
    saved.saved(side, "weight", kMore, TinyMoe::kHidden);
    saved.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"modules_to_save", {side}}});
    error = fixture.refused(fixture.model.options());
    EXPECT_EQ(error.code(), ErrorCode::LO_VOCAB) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(side));
  }

  Lora tokens = fixture.plain();
  tokens.tokens("model.embed_tokens", {1});
  tokens.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}},
                           {"trainable_token_indices", {{"embed_tokens", {kMore}}}}});
  error = fixture.refused(fixture.model.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_VOCAB) << error.what();
}

TEST(MergeRefuses, TheSameAdapterAgain) {
  const Refusal fixture;
  Lora lora = fixture.plain();
  lora.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}});
  Error error = fixture.refused(fixture.model.options({"adapter", "adapter"}));
  EXPECT_EQ(error.code(), ErrorCode::LO_REPEAT) << error.what();

  fixture.model.merge(fixture.model.options());
  MergeOptions again = fixture.model.options();
  again.base = fixture.model.folder / "out";
  error = fixture.refused(again);
  EXPECT_EQ(error.code(), ErrorCode::LO_REPEAT) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("adapter"));
  again.allow_repeat = true;
  auto twice = lora.effects();
  auto& values = twice.at(kQ + ".weight");
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += values[i] - fixture.model.at(kQ + ".weight").values[i];
  execute(plan_merge(again).plan, fixture.model.folder / "twice");
  expect_merged(fixture.model, tensors_in(fixture.model.folder / "twice"), twice);
  again.allow_repeat = false;  // the record holds both
  again.base = fixture.model.folder / "twice";
  EXPECT_EQ(fixture.refused(again).code(), ErrorCode::LO_REPEAT);
}

TEST(MergeRefuses, ExpertsForABaseWithoutAny) {
  TemporaryFolder folder;
  const auto w = [](const std::string& name, std::int64_t rows, std::int64_t cols) {
    return stored(name, "F32", Draw(1).matrix(rows, cols, 1, 5));
  };
  write_base(folder / "base",
             {{"model_type", "llama"},
              {"architectures", {"LlamaForCausalLM"}},
              {"hidden_size", 8},
              {"intermediate_size", 6},
              {"num_hidden_layers", 1},
              {"num_attention_heads", 1},
              {"vocab_size", 5},
              {"tie_word_embeddings", false}},
             {{w("model.embed_tokens.weight", 5, 8), w("model.layers.0.self_attn.q_proj.weight", 8, 8),
               w("model.layers.0.mlp.gate_proj.weight", 6, 8), w("model.layers.0.mlp.up_proj.weight", 6, 8),
               w("model.layers.0.mlp.down_proj.weight", 8, 6), w("lm_head.weight", 5, 8)}});
  MergeOptions options;
  options.base = folder / "base";
  options.adapters = {{folder / "adapter", 1}};
  const std::string layer = "base_model.model.model.layers.0.mlp.experts";
  const auto expect_no_experts = [&](const std::string& what) {
    const Error error = expect_error(what, [&] { plan_merge(options); });
    EXPECT_EQ(error.code(), ErrorCode::LO_TARGET) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("the base has no experts")) << what;
    EXPECT_THAT(error.what(), HasSubstr("llama")) << what;
    EXPECT_THAT(error.what(), Not(HasSubstr("--family"))) << what;
  };
  write_lora(folder / "adapter", lora_config(2, 4, {{"target_modules", {"down_proj"}}, {"peft_version", "0.18.1"}}),
             {w(layer + ".0.down_proj.lora_A.weight", 2, 6), w(layer + ".0.down_proj.lora_B.weight", 8, 2)});
  expect_no_experts("per expert");
  write_lora(folder / "adapter", lora_config(2, 4, {{"target_parameters", {"mlp.experts.down_proj"}}}),
             {w(layer + ".lora_A.weight", 4, 6), w(layer + ".lora_B.weight", 8, 4)});
  expect_no_experts("fused");
  write_lora(folder / "adapter",
             lora_config(2, 4, {{"target_parameters", {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}}}),
             {w(layer + ".lora_A.weight", 4, 6), w(layer + ".lora_B.weight", 8, 4),
              w(layer + ".base_layer.lora_A.weight", 4, 8), w(layer + ".base_layer.lora_B.weight", 12, 4)});
  expect_no_experts("fused, two parameters");
}

// The reverse: a dense adapter's MLP on experts.
TEST(MergeRefuses, ADenseMlpForABaseOfExperts) {
  const Refusal fixture;
  Lora lora(fixture.model, 2, 4, 1);
  const std::string key = "base_model.model.model.layers.0.mlp.down_proj.lora_";
  lora.tensors().push_back(stored(key + "A.weight", "F32", Draw(1).matrix(2, 10, 1, 3)));
  lora.tensors().push_back(stored(key + "B.weight", "F32", Draw(2).matrix(8, 2, 1, 3)));
  lora.write("adapter", {{"target_modules", {"down_proj"}}});
  const Error error = fixture.refused(fixture.model.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_TARGET) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("model.layers.0.mlp.down_proj"));
}

}  // namespace
}  // namespace peft::testing
