// Merging into quantised bases: MXFP4 as gpt-oss ships it, block-wise FP8 as DeepSeek and Qwen do. The tensors are made
// here, code by code, and every value of the result is judged by a sum in fp64 that is made here too.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr std::int64_t kRank = 2;

double bf16_sum(double base, double delta) { return nearest_bf16(nearest_bf16(base) + delta); }

ExpertFactors draw_pair(Draw& draw, std::int64_t out, std::int64_t in, double unit) {
  return {draw.matrix(kRank, in, unit, 3), draw.matrix(out, kRank, 0.25, 3)};
}

// gpt-oss: two layers of three experts, hidden 64, intermediate 32.
struct GptOss {
  static constexpr std::int64_t kExperts = 3, kHidden = 64, kIntermediate = 32, kLayers = 2;
  std::vector<Mxfp4> gate_up, down;  // of each layer
  std::vector<Matrix> q;             // q_proj of each layer
  std::vector<Stored> others;
  TemporaryFolder folder;

  GptOss() {
    std::vector<Stored> tensors;
    Draw draw(11);
    for (std::int64_t l = 0; l < kLayers; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l), experts = layer + "mlp.experts.";
      gate_up.push_back(draw_mxfp4(experts + "gate_up_proj", kExperts, 2 * kIntermediate, kHidden,
                                   100 + static_cast<std::uint64_t>(l)));
      down.push_back(
          draw_mxfp4(experts + "down_proj", kExperts, kHidden, kIntermediate, 200 + static_cast<std::uint64_t>(l)));
      q.push_back(draw.matrix(32, kHidden, 0.125, 40));
      for (const auto* packed : {&gate_up.back(), &down.back()})
        tensors.push_back(packed->blocks), tensors.push_back(packed->scales);
      tensors.push_back(stored(layer + "self_attn.q_proj.weight", "BF16", q.back()));
      others.push_back(stored(experts + "gate_up_proj_bias", "BF16", draw.matrix(kExperts, 2 * kIntermediate, 0.5, 9)));
      others.push_back(stored(experts + "down_proj_bias", "BF16", draw.matrix(kExperts, kHidden, 0.5, 9)));
      others.push_back(stored(layer + "mlp.router.weight", "BF16", draw.matrix(kExperts, kHidden, 0.5, 9)));
    }
    others.push_back(stored("model.embed_tokens.weight", "BF16", draw.matrix(17, kHidden, 0.5, 9)));
    others.push_back(stored("lm_head.weight", "BF16", draw.matrix(17, kHidden, 0.5, 9)));
    tensors.insert(tensors.end(), others.begin(), others.end());
    const Json quantization = {
        {"quant_method", "mxfp4"},
        {"modules_to_not_convert", {"model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"}}};
    const Json config = {{"model_type", "gpt_oss"},
                         {"architectures", {"GptOssForCausalLM"}},
                         {"hidden_size", kHidden},
                         {"intermediate_size", kIntermediate},
                         {"num_hidden_layers", kLayers},
                         {"num_local_experts", kExperts},
                         {"num_experts_per_tok", 1},
                         {"num_attention_heads", 2},
                         {"num_key_value_heads", 1},
                         {"head_dim", 16},
                         {"vocab_size", 17},
                         {"tie_word_embeddings", false},
                         {"quantization_config", quantization}};
    write_base(folder / "base", config, {tensors});
  }

  // Experts [in, out] of one parameter, stacked, as the model has them after dequantising.
  static std::vector<double> stacked(const std::vector<Matrix>& experts) {
    std::vector<double> all;
    for (const Matrix& expert : experts) {
      const Matrix turned = transposed(expert);
      for (const double value : turned.values) all.push_back(nearest_bf16(value));
    }
    return all;
  }

  // Of layer 0's down_proj alone; and its effect.
  std::vector<Matrix> write_expert_adapter(const fs::path& at) const {
    Draw draw(7);
    std::vector<ExpertFactors> pairs;
    for (std::int64_t e = 0; e < kExperts; ++e) pairs.push_back(draw_pair(draw, kHidden, kIntermediate, 0.5));
    const FusedPair fused = fuse(pairs, false, false);
    const std::string key = "base_model.model.model.layers.0.mlp.experts.lora_";
    write_lora(at, lora_config(kRank, 2 * kRank, {{"target_parameters", {"0.mlp.experts.down_proj"}}}),
               {stored(key + "A.weight", "F32", fused.a), stored(key + "B.weight", "F32", fused.b)});
    std::vector<Matrix> merged = down[0].values;
    for (std::size_t e = 0; e < merged.size(); ++e) {
      const Matrix delta = scaled(2, product(pairs[e].b, pairs[e].a));
      for (std::size_t i = 0; i < delta.values.size(); ++i)
        merged[e].values[i] = bf16_sum(merged[e].values[i], delta.values[i]);
    }
    return merged;
  }

  Matrix write_dense_adapter(const fs::path& at) const {
    Draw draw(8);
    const ExpertFactors pair = draw_pair(draw, 32, kHidden, 0.5);
    const std::string key = "base_model.model.model.layers.1.self_attn.q_proj.lora_";
    write_lora(at, lora_config(kRank, 2 * kRank, {{"target_modules", {"model.layers.1.self_attn.q_proj"}}}),
               {stored(key + "A.weight", "F32", pair.a), stored(key + "B.weight", "F32", pair.b)});
    Matrix merged = q[1];
    const Matrix delta = scaled(2, product(pair.b, pair.a));
    for (std::size_t i = 0; i < delta.values.size(); ++i)
      merged.values[i] = bf16_sum(merged.values[i], delta.values[i]);
    return merged;
  }

  MergeOptions options(const std::string& adapter) const {
    MergeOptions options;
    options.base = folder / "base";
    options.adapters = {{folder / adapter, 1}};
    return options;
  }
  std::map<std::string, Found> merge(const MergeOptions& options) const {
    fs::remove_all(folder / "out");
    execute(plan_merge(options).plan, folder / "out");
    return tensors_in(folder / "out");
  }
  Json config() const { return read_json(folder.path() / "out" / "config.json"); }
};

void expect_values(const std::map<std::string, Found>& out, const std::string& name, const std::string& dtype,
                   const std::vector<std::int64_t>& shape, const std::vector<double>& values) {
  ASSERT_TRUE(out.contains(name)) << name;
  EXPECT_EQ(out.at(name).dtype, dtype) << name;
  EXPECT_EQ(out.at(name).shape, shape) << name;
  EXPECT_TRUE(out.at(name).values == values) << name;
}
void expect_same(const std::map<std::string, Found>& out, const Stored& tensor) {
  ASSERT_TRUE(out.contains(tensor.name)) << tensor.name;
  EXPECT_EQ(out.at(tensor.name).dtype, tensor.dtype) << tensor.name;
  EXPECT_EQ(out.at(tensor.name).shape, tensor.shape) << tensor.name;
  EXPECT_TRUE(out.at(tensor.name).bytes == tensor.bytes) << tensor.name;
}

TEST(MergeMxfp4, ExpertAdapterDequantisesEverything) {
  const GptOss model;
  const auto merged = model.write_expert_adapter(model.folder / "adapter");
  const auto out = model.merge(model.options("adapter"));
  constexpr auto E = GptOss::kExperts, H = GptOss::kHidden, I = GptOss::kIntermediate;
  for (std::size_t l = 0; l < 2; ++l) {
    const std::string experts = fmt::format("model.layers.{}.mlp.experts.", l);
    expect_values(out, experts + "down_proj", "BF16", {E, I, H},
                  GptOss::stacked(l == 0 ? merged : model.down[l].values));
    expect_values(out, experts + "gate_up_proj", "BF16", {E, H, 2 * I}, GptOss::stacked(model.gate_up[l].values));
  }
  for (const Stored& tensor : model.others) expect_same(out, tensor);
  EXPECT_EQ(out.size(), model.others.size() + 6);  // no codes, no scales
  EXPECT_FALSE(model.config().contains("quantization_config"));
}

TEST(MergeMxfp4, DenseAdapterKeepsWhatItDoesNotTouch) {
  const GptOss model;
  const Matrix q = model.write_dense_adapter(model.folder / "adapter");
  MergeOptions options = model.options("adapter");
  options.keep_quantized = true;
  const auto out = model.merge(options);
  expect_values(out, "model.layers.1.self_attn.q_proj.weight", "BF16", {q.rows, q.cols}, q.values);
  for (std::size_t l = 0; l < 2; ++l) {
    for (const auto* packed : {&model.gate_up[l], &model.down[l]})
      expect_same(out, packed->blocks), expect_same(out, packed->scales);
  }
  for (const Stored& tensor : model.others) expect_same(out, tensor);
  EXPECT_EQ(model.config(), read_json(model.folder.path() / "base" / "config.json"));  // every word of it is still true
}

TEST(MergeMxfp4, KeptLayersStayAndTheOthersAreNamed) {
  const GptOss model;
  const auto merged = model.write_expert_adapter(model.folder / "adapter");
  MergeOptions options = model.options("adapter");
  options.keep_quantized = true;
  const auto out = model.merge(options);
  constexpr auto E = GptOss::kExperts, H = GptOss::kHidden, I = GptOss::kIntermediate;
  expect_values(out, "model.layers.0.mlp.experts.down_proj", "BF16", {E, I, H}, GptOss::stacked(merged));
  expect_values(out, "model.layers.0.mlp.experts.gate_up_proj", "BF16", {E, H, 2 * I},
                GptOss::stacked(model.gate_up[0].values));  // a layer is one or the other
  for (const auto* packed : {&model.gate_up[1], &model.down[1]})
    expect_same(out, packed->blocks), expect_same(out, packed->scales);
  const Json quantization = model.config().at("quantization_config");
  EXPECT_EQ(quantization.at("quant_method"), "mxfp4");
  EXPECT_EQ(quantization.at("modules_to_not_convert"),
            Json({"model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head", "model.layers.0.mlp.experts"}));
}

TEST(MergeMxfp4, ValueThatIsNoNumberEndsTheRunThoughNothingIsAddedThere) {
  const GptOss model;
  model.write_dense_adapter(model.folder / "adapter");
  const fs::path file = model.folder.path() / "base" / "model.safetensors";
  std::string image = read_file(file);
  const Stored& scales = model.down[0].scales;
  const auto at = image.find(scales.bytes);
  ASSERT_NE(at, std::string::npos);
  image[at] = static_cast<char>(0xff);  // 2^128: no bf16 holds a code times that
  write_file(file, image);
  const Error error = expect_error("2^128", [&] { model.merge(model.options("adapter")); });
  EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("model.layers.0.mlp.experts.down_proj"));
  EXPECT_FALSE(fs::exists(model.folder / "out"));
}

// Block FP8, as DeepSeek ships it: experts by themselves, projections of attention too.
struct Fp8 {
  static constexpr std::int64_t kExperts = 2, kHidden = 48, kIntermediate = 32, kLayers = 2;
  std::map<std::string, BlockFp8> packed;
  std::map<std::string, Matrix> want;  // values in fp64 before the last rounding
  std::vector<Stored> others;
  TemporaryFolder folder;

  Fp8() {
    std::uint64_t seed = 1;
    std::vector<Stored> tensors;
    const auto add = [&](const std::string& module, std::int64_t rows, std::int64_t cols) {
      const std::string name = module + ".weight";
      const BlockFp8 made = draw_fp8(name, rows, cols, 16, seed++);
      tensors.push_back(made.codes);
      tensors.push_back(made.scales);
      packed.emplace(name, made);
    };
    for (std::int64_t l = 0; l < kLayers; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      for (std::int64_t e = 0; e < kExperts; ++e) {
        const std::string expert = fmt::format("{}mlp.experts.{}.", layer, e);
        add(expert + "gate_proj", kIntermediate, kHidden);
        add(expert + "up_proj", kIntermediate, kHidden);
        add(expert + "down_proj", kHidden, kIntermediate);
      }
      add(layer + "self_attn.q_proj", 32, kHidden);
      others.push_back(stored(layer + "mlp.gate.weight", "BF16", Draw(seed).matrix(kExperts, kHidden, 0.5, 9)));
    }
    others.push_back(stored("model.embed_tokens.weight", "BF16", Draw(seed).matrix(17, kHidden, 0.5, 9)));
    others.push_back(stored("lm_head.weight", "BF16", Draw(seed + 1).matrix(17, kHidden, 0.5, 9)));
    tensors.insert(tensors.end(), others.begin(), others.end());
    const Json quantization = {
        {"quant_method", "fp8"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {16, 16}}};
    const Json config = {{"model_type", "qwen3_moe"},
                         {"architectures", {"Qwen3MoeForCausalLM"}},
                         {"hidden_size", kHidden},
                         {"intermediate_size", 40},
                         {"moe_intermediate_size", kIntermediate},
                         {"num_hidden_layers", kLayers},
                         {"num_experts", kExperts},
                         {"num_experts_per_tok", 1},
                         {"num_attention_heads", 2},
                         {"num_key_value_heads", 1},
                         {"head_dim", 16},
                         {"vocab_size", 17},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "bfloat16"},
                         {"quantization_config", quantization}};
    write_base(folder / "base", config, {tensors});
  }

  // A pair for one module, as transformers 4 names it.
  void touch(const std::string& module, std::vector<Stored>& tensors, Draw& draw) {
    const std::string name = module + ".weight";
    Matrix sum = packed.at(name).values;
    const ExpertFactors pair = draw_pair(draw, sum.rows, sum.cols, 0.125);
    tensors.push_back(stored("base_model.model." + module + ".lora_A.weight", "F32", pair.a));
    tensors.push_back(stored("base_model.model." + module + ".lora_B.weight", "F32", pair.b));
    const Matrix delta = scaled(2, product(pair.b, pair.a));
    for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] = nearest_bf16(sum.values[i]) + delta.values[i];
    want[name] = sum;
  }
  void write_adapter_on(const std::vector<std::string>& modules, const std::string& at) {
    std::vector<Stored> tensors;
    Draw draw(31);
    for (const std::string& module : modules) touch(module, tensors, draw);
    write_lora(folder / at, lora_config(kRank, 2 * kRank, {{"target_modules", modules}, {"peft_version", "0.18.1"}}),
               tensors);
  }
  MergeOptions options() const {
    MergeOptions options;
    options.base = folder / "base";
    options.adapters = {{folder / "adapter", 1}};
    return options;
  }
  std::map<std::string, Found> merge(const MergeOptions& options) const {
    fs::remove_all(folder / "out");
    execute(plan_merge(options).plan, folder / "out");
    return tensors_in(folder / "out");
  }
  // Dequantised, with what is added to it, in bf16 and then in `dtype`.
  void expect_plain(const std::map<std::string, Found>& out, const std::string& name,
                    const std::string& dtype = "BF16") const {
    Matrix values = want.contains(name) ? want.at(name) : packed.at(name).values;
    for (double& value : values.values)
      value = dtype == "BF16" ? nearest_bf16(value) : nearest(dtype, nearest_bf16(value));
    expect_values(out, name, dtype, {values.rows, values.cols}, values.values);
    EXPECT_FALSE(out.contains(name + "_scale_inv")) << name;
  }
  void expect_packed(const std::map<std::string, Found>& out, const std::string& name) const {
    expect_same(out, packed.at(name).codes);
    expect_same(out, packed.at(name).scales);
  }
  Json config() const { return read_json(folder.path() / "out" / "config.json"); }
};

TEST(MergeFp8, ExpertAdapterDequantisesEverything) {
  Fp8 model;
  model.write_adapter_on({"model.layers.1.mlp.experts.0.down_proj", "model.layers.1.mlp.experts.1.gate_proj"},
                         "adapter");
  const auto out = model.merge(model.options());
  for (const auto& [name, tensor] : model.packed) model.expect_plain(out, name);
  for (const Stored& tensor : model.others) expect_same(out, tensor);
  EXPECT_EQ(out.size(), model.packed.size() + model.others.size());
  Json want = read_json(model.folder.path() / "base" / "config.json");
  want.erase("quantization_config");
  EXPECT_EQ(model.config(), want);
}

TEST(MergeFp8, DenseAdapterKeepsWhatItDoesNotTouch) {
  Fp8 model;
  const std::string q = "model.layers.0.self_attn.q_proj";
  model.write_adapter_on({q}, "adapter");
  MergeOptions options = model.options();
  options.keep_quantized = true;
  const auto out = model.merge(options);
  for (const auto& [name, tensor] : model.packed)
    name == q + ".weight" ? model.expect_plain(out, name) : model.expect_packed(out, name);
  for (const Stored& tensor : model.others) expect_same(out, tensor);
  EXPECT_EQ(model.config().at("quantization_config").at("modules_to_not_convert"), Json({q}));
  EXPECT_EQ(model.config().at("quantization_config").at("weight_block_size"), Json({16, 16}));
}

TEST(MergeFp8, ExpertAdapterKeepsTheOtherLayers) {
  Fp8 model;
  model.write_adapter_on({"model.layers.1.mlp.experts.0.down_proj"}, "adapter");
  MergeOptions options = model.options();
  options.keep_quantized = true;
  const auto out = model.merge(options);
  std::set<std::string> plain;
  for (const auto& [name, tensor] : model.packed) {
    const bool touched = name.find("layers.1.mlp.experts") != std::string::npos;
    touched ? model.expect_plain(out, name) : model.expect_packed(out, name);
    if (touched) plain.insert(name.substr(0, name.size() - 7));
  }
  plain.insert("model.layers.1.mlp.experts");  // what a loader that fuses them asks for
  const auto listed =
      model.config().at("quantization_config").at("modules_to_not_convert").get<std::set<std::string>>();
  EXPECT_EQ(listed, plain);
}

// The scales of tensors that stay are a part of their codes: no dtype that was asked for is theirs.
TEST(MergeFp8, ScalesOfKeptTensorsAreNotCast) {
  Fp8 model;
  const std::string q = "model.layers.0.self_attn.q_proj";
  model.write_adapter_on({q}, "adapter");
  for (const bool first : {true, false}) {
    MergeOptions options = model.options();
    options.keep_quantized = true;
    (first ? options.base_dtype : options.out_dtype) = Dtype::bf16;
    const auto out = model.merge(options);
    for (const auto& [name, tensor] : model.packed)
      name == q + ".weight" ? model.expect_plain(out, name) : model.expect_packed(out, name);
  }
}

TEST(MergeFp8, ResultInAnotherDtype) {
  Fp8 model;
  model.write_adapter_on({"model.layers.0.self_attn.q_proj"}, "adapter");
  MergeOptions options = model.options();
  options.out_dtype = Dtype::f16;
  const auto out = model.merge(options);
  for (const auto& [name, tensor] : model.packed) model.expect_plain(out, name, "F16");
  EXPECT_EQ(model.config().at("torch_dtype"), "float16");
}

TEST(MergeFp8, ValueThatIsNoNumberEndsTheRunThoughNothingIsAddedThere) {
  Fp8 model;
  model.write_adapter_on({"model.layers.0.self_attn.q_proj"}, "adapter");
  const std::string name = "model.layers.1.mlp.experts.1.up_proj.weight";
  const fs::path file = model.folder.path() / "base" / "model.safetensors";
  std::string image = read_file(file);
  const auto at = image.find(model.packed.at(name).codes.bytes);
  ASSERT_NE(at, std::string::npos);
  image[at + 37] = 0x7f;
  write_file(file, image);
  const Error error = expect_error("a NaN code", [&] { model.merge(model.options()); });
  EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE) << error.what();
  EXPECT_THAT(error.what(), HasSubstr(name));
  EXPECT_FALSE(fs::exists(model.folder / "out"));
}

TEST(MergeFp8, MethodThatCannotNameExceptionsIsRefused) {
  Fp8 model;
  model.write_adapter_on({"model.layers.0.self_attn.q_proj"}, "adapter");
  const fs::path config = model.folder.path() / "base" / "config.json";
  Json json = read_json(config);
  json["quantization_config"]["quant_method"] = "fbgemm_fp8";
  write_file(config, json.dump(2));
  MergeOptions options = model.options();
  options.keep_quantized = true;
  const Error error = expect_error("fbgemm", [&] { plan_merge(options); });
  EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
  options.keep_quantized = false;
  EXPECT_FALSE(Json::parse(plan_merge(options).plan.texts.front().second).contains("quantization_config"));
}

// One matrix [rows, cols] in cells of `drawn`, and an adapter on another one or on this.
struct OddFp8 {
  TemporaryFolder folder;
  BlockFp8 packed;
  Matrix merged;

  OddFp8(std::int64_t rows, std::int64_t cols, std::int64_t drawn, const Json& block_size,
         const std::string& touched = "odd")
      : packed(draw_fp8("encoder.odd.weight", rows, cols, drawn, 5)), merged(packed.values) {
    Draw draw(6);
    const BlockFp8 other = draw_fp8("encoder.even.weight", 128, 128, 128, 7);
    write(block_size, {packed.codes, packed.scales, other.codes, other.scales});
    const Matrix& base = touched == "odd" ? packed.values : other.values;
    const ExpertFactors pair = draw_pair(draw, base.rows, base.cols, 0.125);
    if (touched == "odd") {
      const Matrix delta = scaled(2, product(pair.b, pair.a));
      for (std::size_t i = 0; i < delta.values.size(); ++i)
        merged.values[i] = nearest_bf16(merged.values[i]) + delta.values[i];
    }
    for (double& value : merged.values) value = nearest_bf16(value);
    const std::string key = "base_model.model.encoder." + touched + ".lora_";
    write_lora(folder / "adapter", lora_config(kRank, 2 * kRank, {{"target_modules", {touched}}}),
               {stored(key + "A.weight", "F32", pair.a), stored(key + "B.weight", "F32", pair.b)});
  }
  void write(const Json& block_size, const std::vector<Stored>& tensors) const {
    Json quantization = {{"quant_method", "fp8"}};
    if (!block_size.is_null()) quantization["weight_block_size"] = block_size;
    write_base(folder / "base", {{"model_type", "a_model_of_matrices"}, {"quantization_config", quantization}},
               {tensors});
  }
  MergeOptions options() const {
    MergeOptions options;
    options.base = folder / "base";
    options.adapters = {{folder / "adapter", 1}};
    return options;
  }
  Error refused(const MergeOptions& options) const {
    return expect_error("cells that fit nothing", [&] { plan_merge(options); });
  }
};

// Cells of weight_block_size from the corner, the last ones cut: 448 rows in 4 cells are not 4 times 112, 100 in 2 not
// 2 times 50. Where the grid is another one, it divides the matrix.
TEST(MergeFp8, CellsThatDoNotDivideTheMatrix) {
  struct Case {
    std::int64_t rows, cols, drawn;
    Json block_size;
  };
  for (const Case& c : {Case{448, 300, 128, {128, 128}},
                        {448, 300, 128, nullptr},
                        {100, 70, 64, {64, 64}},
                        {130, 33, 16, {16, 16}},
                        {100, 70, 10, {128, 128}},
                        {100, 70, 10, {64, 64}},
                        {64, 48, 16, nullptr}}) {
    for (const std::string touched : {"odd", "even"}) {
      SCOPED_TRACE(fmt::format("{} x {} in cells of {}, {} touched", c.rows, c.cols, c.drawn, touched));
      const OddFp8 model(c.rows, c.cols, c.drawn, c.block_size, touched);
      execute(plan_merge(model.options()).plan, model.folder / "out");
      const auto out = tensors_in(model.folder / "out");
      expect_values(out, "encoder.odd.weight", "BF16", {c.rows, c.cols}, model.merged.values);
      EXPECT_EQ(out.size(), 2u);
    }
  }
}

TEST(MergeFp8, CellsThatFitNothingAreRefused) {
  const OddFp8 touched(100, 70, 40, {64, 64});
  Error error = touched.refused(touched.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("encoder.odd.weight"));

  // Not touched: it stays codes, which a model without quantization_config cannot have.
  const OddFp8 other(100, 70, 40, {64, 64}, "even");
  error = other.refused(other.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("encoder.odd.weight"));
  EXPECT_THAT(error.what(), HasSubstr("--keep-quantized"));
  MergeOptions keep = other.options();
  keep.keep_quantized = true;
  execute(plan_merge(keep).plan, other.folder / "out");
  expect_same(tensors_in(other.folder / "out"), other.packed.codes);
  expect_same(tensors_in(other.folder / "out"), other.packed.scales);

  // Matrices that lie one behind the other: the last cell of one is cut, and the next begins with a cell of its own.
  const OddFp8 stacked(128, 128, 128, {128, 128}, "even");
  const BlockFp8 one = draw_fp8("encoder.even.weight", 128, 128, 128, 7);
  stacked.write({128, 128},
                {one.codes, one.scales,
                 stored_bytes("encoder.stack", "F8_E4M3", {2, 192, 128}, std::string(2 * 192 * 128, '\x38')),
                 stored("encoder.stack_scale_inv", "F32", {2, 2, 1}, {1, 2, 3, 4})});
  error = stacked.refused(stacked.options());
  EXPECT_EQ(error.code(), ErrorCode::LO_QUANT) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("encoder.stack"));
}

TEST(MergeFp8, ABlockSizeThatIsNoneIsNamed) {
  for (const Json& size : {Json{128, 0}, Json{128, -1}, Json{128, 1.5}, Json{128, "128"}, Json{128, 4294967296}}) {
    const OddFp8 model(128, 128, 128, size);
    const Error error = model.refused(model.options());
    EXPECT_EQ(error.code(), ErrorCode::MD_FORM) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("weight_block_size"));
  }
}

// verify --merged: a base that is quantised, a merged model that is not; and one that keeps what was not touched.
VerifyMergedReport verified(const MergeOptions& options, const std::string& merged) {
  VerifyMergedOptions verify;
  verify.merge = options;
  verify.merged = merged;
  return verify_merged(verify);
}

std::string text_of(const VerifyMergedReport& report) {
  std::string text;
  for (const auto& d : report.differences) text += std::string(name(d.kind)) + " " + d.tensor + ": " + d.what + "\n";
  return text;
}

TEST(VerifyQuantised, DequantisedMergeIsProvedAndEveryLeftOutTensorNamed) {
  Fp8 model;
  const std::vector<std::string> modules = {"model.layers.1.mlp.experts.0.down_proj",
                                            "model.layers.1.mlp.experts.1.gate_proj",
                                            "model.layers.0.self_attn.q_proj"};
  model.write_adapter_on(modules, "adapter");
  for (const bool keep : {false, true}) {
    MergeOptions options = model.options();
    options.keep_quantized = keep;
    model.merge(options);
    const auto good = verified(model.options(), model.folder / "out");
    EXPECT_TRUE(good.same) << text_of(good);
    EXPECT_EQ(good.bounds.beyond, 0u);
    EXPECT_GT(good.bounds.all(), 0u);
    for (const std::string& module : modules) {  // dequantised, and nothing added
      const auto out = tensors_in(model.folder / "out");
      const Found& found = out.at(module + ".weight");
      const Stored plain = stored("", "BF16", model.packed.at(module + ".weight").values);
      const fs::path file = model.folder.path() / "out" / found.file;
      const std::string image = read_file(file);
      std::string broken = image;
      write_file(file, broken.replace(found.begin, found.bytes.size(), plain.bytes));
      const auto bad = verified(model.options(), model.folder / "out");
      ASSERT_EQ(bad.num_differences, 1) << module << "\n" << text_of(bad);
      EXPECT_EQ(bad.differences[0].kind, MergedDifference::Kind::not_merged);
      EXPECT_TRUE(bad.differences[0].tensor == module ||
                  module.starts_with(bad.differences[0].tensor.substr(0, bad.differences[0].tensor.rfind('.'))))
          << text_of(bad);
      write_file(file, image);
    }
  }
  // The base itself: quantised still, where the merge would have added.
  const auto base = verified(model.options(), model.folder / "base");
  EXPECT_FALSE(base.same);
  for (const auto& difference : base.differences)
    EXPECT_EQ(difference.kind, MergedDifference::Kind::not_merged) << text_of(base);
  EXPECT_EQ(base.num_differences, 3) << text_of(base);
}

TEST(VerifyQuantised, GptOss) {
  const GptOss model;
  model.write_expert_adapter(model.folder / "adapter");
  for (const bool keep : {false, true}) {
    MergeOptions options = model.options("adapter");
    options.keep_quantized = keep;
    model.merge(options);
    const auto good = verified(model.options("adapter"), model.folder / "out");
    EXPECT_TRUE(good.same) << text_of(good);
    EXPECT_GT(good.bounds.all(), 0u);
  }
  model.write_dense_adapter(model.folder / "other");
  model.merge(model.options("other"));
  const auto bad = verified(model.options("adapter"), model.folder / "out");
  EXPECT_FALSE(bad.same);
  EXPECT_EQ(bad.num_differences, GptOss::kExperts + 1)
      << text_of(bad);  // the experts of layer 0, and a q_proj that changed
  const auto base = verified(model.options("adapter"), model.folder / "base");
  EXPECT_FALSE(base.same);
  EXPECT_THAT(text_of(base), HasSubstr("model.layers.0.mlp.experts"));
  EXPECT_THAT(text_of(base), ::testing::Not(HasSubstr("model.layers.1")));
}

// An adapter is recovered from the quantised base and the merged model in bf16: merged again it gives the same model.
TEST(ExtractQuantised, GivesTheDeltaOfTheDequantisedBase) {
  Fp8 model;
  const std::vector<std::string> modules = {"model.layers.1.mlp.experts.0.down_proj",
                                            "model.layers.0.self_attn.q_proj"};
  model.write_adapter_on(modules, "adapter");
  model.merge(model.options());
  ExtractOptions options;
  options.base = model.folder / "base";
  options.finetuned = model.folder / "out";
  options.rank = 16;
  const LowRankResult result = plan_extract(options);
  std::set<std::string> sites;
  for (const LowRankSite& site : result.sites) sites.insert(site.name);
  EXPECT_EQ(sites, (std::set<std::string>{"model.layers.1.mlp.experts.0.down", "model.layers.0.self_attn.q_proj"}));
  materialize(result.plan, model.folder.path() / "lora");
  MergeOptions again = model.options();
  again.adapters = {{model.folder / "lora", 1}};
  const auto report = verified(again, model.folder / "out");
  for (const auto& difference : report.differences) {  // what rounding to bf16 took is not of low rank
    EXPECT_EQ(difference.kind, MergedDifference::Kind::different) << text_of(report);
    EXPECT_NEAR(difference.factor, 1, 0.05) << text_of(report);
  }
}

TEST(ExtractQuantised, GptOss) {
  const GptOss model;
  model.write_expert_adapter(model.folder / "adapter");
  for (const bool keep : {false, true}) {
    MergeOptions merge = model.options("adapter");
    merge.keep_quantized = keep;
    model.merge(merge);
    ExtractOptions options;
    options.base = model.folder / "base";
    options.finetuned = model.folder / "out";
    options.rank = 8;
    const LowRankResult result = plan_extract(options);
    EXPECT_EQ(result.sites.size(), static_cast<std::size_t>(GptOss::kExperts));
    for (const LowRankSite& site : result.sites)
      EXPECT_TRUE(site.name.starts_with("model.layers.0.mlp.experts.") && site.name.ends_with(".down")) << site.name;
  }
}

}  // namespace
}  // namespace peft::testing
