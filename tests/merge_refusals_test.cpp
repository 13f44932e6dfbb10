// What a merge refuses while it plans, by name; and what looks as if it had to be refused and is merged right: kernels of
// convolutions, adapters of a composite model's text class.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "peft/execute.h"
#include "peft/verify_merged.h"
#include "support/judge.h"
#include "support/tensor_writer.h"
#include "support/tiny_moe.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kQ = "model.layers.0.self_attn.q_proj";

struct Refusal {
  TinyMoe model;
  explicit Refusal(TinyMoe::Output output = TinyMoe::Output::own) : model("F32", output) {
    model.write_base_folder();
  }
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
  on_bytes.tensors().push_back(stored("base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight", "F32", Draw(1).matrix(2, 4, 1, 3)));
  on_bytes.tensors().push_back(stored("base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight", "F32", Draw(2).matrix(8, 2, 1, 3)));
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
  tokens.write("adapter", {{"target_modules", {"layers.0.self_attn.q_proj"}}, {"trainable_token_indices", {{"embed_tokens", {kMore}}}}});
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
  const auto w = [](const std::string& name, std::int64_t rows, std::int64_t cols) { return stored(name, "F32", Draw(1).matrix(rows, cols, 1, 5)); };
  write_base(folder / "base", {{"model_type", "llama"}, {"architectures", {"LlamaForCausalLM"}}, {"hidden_size", 8}, {"intermediate_size", 6},
                               {"num_hidden_layers", 1}, {"num_attention_heads", 1}, {"vocab_size", 5}, {"tie_word_embeddings", false}},
             {{w("model.embed_tokens.weight", 5, 8), w("model.layers.0.self_attn.q_proj.weight", 8, 8), w("model.layers.0.mlp.gate_proj.weight", 6, 8),
               w("model.layers.0.mlp.up_proj.weight", 6, 8), w("model.layers.0.mlp.down_proj.weight", 8, 6), w("lm_head.weight", 5, 8)}});
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
  write_lora(folder / "adapter", lora_config(2, 4, {{"target_parameters", {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}}}),
             {w(layer + ".lora_A.weight", 4, 6), w(layer + ".lora_B.weight", 8, 4), w(layer + ".base_layer.lora_A.weight", 4, 8),
              w(layer + ".base_layer.lora_B.weight", 12, 4)});
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

// Kernels of 1, 2 and 3 dimensions: the delta is B (a kernel of one) times A, in the kernel's own shape.
TEST(MergeConvolutions, KernelsOfAnyDimension) {
  TemporaryFolder folder;
  const std::map<std::string, std::vector<std::int64_t>> kernels = {{"encoder.one", {4, 3, 5}}, {"encoder.two", {4, 3, 2, 5}}, {"encoder.three", {4, 2, 2, 3, 5}}};
  for (const std::string dtype : {"BF16", "F32"}) {
    for (const bool dora : {false, true}) {
      for (const bool sharded : {false, true}) {
        fs::remove_all(folder.path());
        std::vector<std::vector<Stored>> files(sharded ? 2 : 1);
        std::vector<Stored> lora;
        std::map<std::string, std::vector<double>> want;
        Draw draw(9);
        for (const auto& [module, shape] : kernels) {
          std::int64_t in = 1;
          for (std::size_t i = 1; i < shape.size(); ++i) in *= shape[i];
          const Matrix base = draw.matrix(shape[0], in, 0.125, 30), a = draw.matrix(2, in, 0.5, 3), b = draw.matrix(shape[0], 2, 0.5, 3);
          std::vector<std::int64_t> a_shape = shape, b_shape(shape.size(), 1), m_shape(shape.size(), 1);
          a_shape[0] = 2, b_shape[0] = shape[0], b_shape[1] = 2, m_shape[1] = shape[0];
          files[module == "encoder.one" ? 0 : files.size() - 1].push_back(stored(module + ".weight", dtype, shape, base.values));
          lora.push_back(stored("base_model.model." + module + ".lora_A.weight", "F32", a_shape, a.values));
          lora.push_back(stored("base_model.model." + module + ".lora_B.weight", "F32", b_shape, b.values));
          const Matrix delta = scaled(2, product(b, a));
          std::vector<double> sum = base.values, magnitudes;
          for (std::int64_t i = 0; i < shape[0]; ++i) {
            double square = 0;
            for (std::int64_t j = 0; j < in; ++j) {
              double& value = sum[static_cast<std::size_t>(i * in + j)];
              value += delta.at(i, j);
              square += value * value;
            }
            magnitudes.push_back(nearest("F32", 1.25 * std::sqrt(square)));
            for (std::int64_t j = 0; dora && j < in; ++j) sum[static_cast<std::size_t>(i * in + j)] *= magnitudes.back() / std::sqrt(square);
          }
          if (dora) lora.push_back(stored("base_model.model." + module + ".lora_magnitude_vector", "F32", m_shape, magnitudes));
          want[module + ".weight"] = sum;
        }
        files[0].push_back(stored("encoder.norm.weight", dtype, draw.matrix(1, 4, 1, 3)));
        write_base(folder / "base", {{"model_type", "a_model_of_kernels"}, {"torch_dtype", "float32"}}, files);
        write_lora(folder / "adapter", lora_config(2, 4, {{"target_modules", {"one", "two", "three"}}, {"use_dora", dora}}), lora);
        MergeOptions options;
        options.base = folder / "base";
        options.adapters = {{folder / "adapter", 1}};
        for (const MergeMode mode : {MergeMode::best, MergeMode::fast}) {
          fs::remove_all(folder / "out");
          options.mode = mode;
          execute(plan_merge(options).plan, folder / "out");
          const auto out = tensors_in(folder / "out");
          for (const auto& [name, values] : want) {
            EXPECT_EQ(out.at(name).shape, kernels.at(name.substr(0, name.size() - 7))) << name;
            for (std::size_t i = 0; i < values.size(); ++i) {
              const double rounded = nearest(dtype, values[i]), place = std::ldexp(std::fabs(rounded), dtype == "F32" ? -22 : -6);
              ASSERT_NEAR(out.at(name).values[i], rounded, dora || mode == MergeMode::fast ? place : 0) << name << " " << i;
            }
          }
          VerifyMergedOptions verify{folder / "out", options, 0};
          EXPECT_TRUE(verify_merged(verify).same);
          verify.merged = folder / "base";
          const auto report = verify_merged(verify);
          EXPECT_EQ(report.num_differences, 3);
          for (const auto& difference : report.differences) EXPECT_EQ(difference.kind, "not_merged") << difference.tensor;
        }
      }
    }
  }
}

TEST(MergeConvolutions, GroupsAreRefused) {
  TemporaryFolder folder;
  Draw draw(4);
  write_base(folder / "base", {{"model_type", "a_model_of_kernels"}}, {{stored("encoder.depth.weight", "F32", {6, 1, 4}, draw.matrix(1, 24, 1, 5).values)}});
  write_lora(folder / "adapter", lora_config(2, 4, {{"target_modules", {"depth"}}}),
             {stored("base_model.model.encoder.depth.lora_A.weight", "F32", {2, 6, 4}, draw.matrix(1, 48, 1, 5).values),
              stored("base_model.model.encoder.depth.lora_B.weight", "F32", {6, 2, 1}, draw.matrix(1, 12, 1, 5).values)});
  MergeOptions options;
  options.base = folder / "base";
  options.adapters = {{folder / "adapter", 1}};
  const Error error = expect_error("groups", [&] { plan_merge(options); });
  EXPECT_EQ(error.code(), ErrorCode::LO_SHAPE) << error.what();
}

// A composite model and its text class name the same layers with another prefix.
TEST(MergeComposite, AdaptersOfEitherClassIntoEitherBase) {
  constexpr std::int64_t kExperts = 2, kHidden = 8, kIntermediate = 6;
  for (const bool base_is_text : {false, true}) {
    for (const bool adapter_is_text : {false, true}) {
      SCOPED_TRACE(fmt::format("base {}, adapter {}", base_is_text ? "text" : "composite", adapter_is_text ? "text" : "composite"));
      const std::string prefix = base_is_text ? "model." : "model.language_model.", theirs = adapter_is_text ? "model." : "model.language_model.";
      TemporaryFolder folder;
      Draw draw(6);
      const Matrix q = draw.matrix(16, kHidden, 0.125, 30), embed = draw.matrix(17, kHidden, 0.125, 30);
      const Matrix down = draw.matrix(kExperts * kHidden, kIntermediate, 0.125, 30);
      std::vector<Stored> tensors = {stored(prefix + "embed_tokens.weight", "BF16", embed), stored("lm_head.weight", "BF16", draw.matrix(17, kHidden, 0.125, 30)),
                                     stored(prefix + "layers.0.self_attn.q_proj.weight", "BF16", q),
                                     stored(prefix + "layers.0.mlp.experts.down_proj", "BF16", {kExperts, kHidden, kIntermediate}, down.values),
                                     stored(prefix + "layers.0.mlp.experts.gate_up_proj", "BF16", {kExperts, 2 * kIntermediate, kHidden}, draw.matrix(kExperts * 12, kHidden, 1, 4).values),
                                     stored(prefix + "layers.0.mlp.gate.weight", "BF16", draw.matrix(kExperts, kHidden, 1, 4))};
      if (!base_is_text) tensors.push_back(stored("model.visual.merger.linear_fc1.weight", "BF16", draw.matrix(4, 4, 1, 4)));
      const Json text = {{"model_type", "qwen3_5_moe_text"}, {"hidden_size", kHidden}, {"moe_intermediate_size", kIntermediate}, {"shared_expert_intermediate_size", 4},
                         {"num_hidden_layers", 1}, {"layer_types", {"full_attention"}}, {"num_experts", kExperts}, {"num_experts_per_tok", 1}, {"num_attention_heads", 2},
                         {"num_key_value_heads", 1}, {"head_dim", 4}, {"vocab_size", 17}, {"tie_word_embeddings", false}};
      Json config = text;
      if (base_is_text) config["architectures"] = {"Qwen3_5MoeForCausalLM"};
      else config = {{"model_type", "qwen3_5_moe"}, {"architectures", {"Qwen3_5MoeForConditionalGeneration"}}, {"text_config", text}, {"tie_word_embeddings", false}};
      write_base(folder / "base", config, {tensors});

      const ExpertFactors dense{draw.matrix(2, kHidden, 0.5, 3), draw.matrix(16, 2, 0.5, 3)};
      const ExpertFactors rows{draw.matrix(2, 17, 0.5, 3), draw.matrix(kHidden, 2, 0.5, 3)};
      std::vector<ExpertFactors> experts;
      for (std::int64_t e = 0; e < kExperts; ++e) experts.push_back({draw.matrix(2, kIntermediate, 0.5, 3), draw.matrix(kHidden, 2, 0.5, 3)});
      const FusedPair fused = fuse(experts, false, false);
      const std::string key = "base_model.model." + theirs;
      write_lora(folder / "adapter", lora_config(2, 4, {{"target_modules", {"q_proj", "embed_tokens"}}, {"target_parameters", {"mlp.experts.down_proj"}}}),
                 {stored(key + "layers.0.self_attn.q_proj.lora_A.weight", "F32", dense.a), stored(key + "layers.0.self_attn.q_proj.lora_B.weight", "F32", dense.b),
                  stored(key + "embed_tokens.lora_embedding_A", "F32", rows.a), stored(key + "embed_tokens.lora_embedding_B", "F32", rows.b),
                  stored(key + "layers.0.mlp.experts.lora_A.weight", "F32", fused.a), stored(key + "layers.0.mlp.experts.lora_B.weight", "F32", fused.b)});
      MergeOptions options;
      options.base = folder / "base";
      options.adapters = {{folder / "adapter", 1}};
      EXPECT_NO_THROW(execute(plan_merge(options).plan, folder / "out"));
      if (!fs::exists(folder / "out")) continue;
      const auto out = tensors_in(folder / "out");
      std::map<std::string, std::vector<double>> want;
      const auto add = [&](const std::string& name, const Matrix& base, const Matrix& delta) {
        for (std::size_t i = 0; i < base.values.size(); ++i) want[prefix + name].push_back(nearest_bf16(base.values[i] + 2 * delta.values[i]));
      };
      add("layers.0.self_attn.q_proj.weight", q, product(dense.b, dense.a));
      add("embed_tokens.weight", embed, transposed(product(rows.b, rows.a)));
      for (std::int64_t e = 0; e < kExperts; ++e) {
        add("layers.0.mlp.experts.down_proj", rows_of(down, e * kHidden, kHidden), product(experts[static_cast<std::size_t>(e)].b, experts[static_cast<std::size_t>(e)].a));
      }
      ASSERT_EQ(out.size(), tensors.size());
      for (const Stored& tensor : tensors) {
        const auto touched = want.find(tensor.name);
        EXPECT_TRUE(out.at(tensor.name).values == (touched == want.end() ? tensor.values : touched->second)) << tensor.name;
      }
      EXPECT_TRUE(verify_merged({folder / "out", options, 0}).same);
    }
  }
}

}  // namespace
}  // namespace peft::testing
