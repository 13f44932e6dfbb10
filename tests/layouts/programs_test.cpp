// Files of MLX-LM and of Tinker that are wrong, and what has no form in them. Right ones: golden_test, roundtrip_test.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "support/judge.h"
#include "support/model_writer.h"
#include "support/test_files.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

using safetensors::error_of;
using safetensors::expect_error;

constexpr std::int64_t kHidden = 20, kInner = 13, kExperts = 12, kRank = 3;
const TinyModel kModel{"qwen3_moe", kHidden, kInner, kExperts, 2};
const std::string kMlxExperts = "model.layers.1.mlp.switch_mlp.",
                  kExpertsKey = "base_model.model.model.layers.1.mlp.experts.";
const std::string kQuery = "model.layers.0.self_attn.q_proj";

using Tensors = std::vector<NewTensor>;

// Floats that count up, in a safetensors file.
void write_tensors(const std::string& path, const Tensors& tensors) {
  const FileLayout layout = layout_file(tensors, {});
  std::string bytes = layout.head + std::string(layout.data_bytes, '\0');
  for (std::size_t i = 0; i < layout.data_bytes / 4; ++i) {
    const float value = static_cast<float>(i + 1) / 8;
    std::memcpy(bytes.data() + layout.head.size() + 4 * i, &value, sizeof value);
  }
  std::ofstream(path, std::ios::binary) << bytes;
}

NewTensor floats(std::string name, std::vector<std::int64_t> shape) {
  return {std::move(name), Dtype::f32, std::move(shape)};
}

Tensors mlx_pair(const std::string& projection, std::int64_t out, std::int64_t in) {
  return {floats(kMlxExperts + projection + ".lora_a", {kExperts, kRank, in}),
          floats(kMlxExperts + projection + ".lora_b", {kExperts, out, kRank})};
}

Tensors stacked_pair(const std::string& projection, std::vector<std::int64_t> a, std::vector<std::int64_t> b) {
  return {floats(kExpertsKey + projection + ".lora_A.weight", std::move(a)),
          floats(kExpertsKey + projection + ".lora_B.weight", std::move(b))};
}

class Programs : public ::testing::Test {
 protected:
  Programs() { write_model(folder_.path() / "base", kModel); }

  Input read(Layout layout, const Tensors& tensors, bool with_base = true, std::int64_t num_experts = 0) {
    const std::string path = folder_ / fmt::format("{}", count_++);
    std::filesystem::create_directories(path);
    write_tensors(path + "/" + std::string(info(layout).weights_file), tensors);
    std::ofstream(path + "/adapter_config.json")
        << (layout == Layout::mlx
                ? R"({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 3, "scale": 2.5}})"
                : R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6})");
    InputOptions options;
    if (with_base) options.base = folder_ / "base";
    if (!with_base) options.family = "qwen3_moe";
    options.num_experts = num_experts;
    return load(path, options);
  }

  struct Wrong {
    const char* what;
    Tensors tensors;
    ErrorCode code;
    std::vector<std::string> words;
  };
  void expect_errors(Layout layout, const std::vector<Wrong>& rows) {
    for (const Wrong& row : rows) {
      SCOPED_TRACE(row.what);
      expect_error(error_of([&] { read(layout, row.tensors); }), row.code, row.words);
    }
  }

  TemporaryFolder folder_;
  int count_ = 0;
};

TEST_F(Programs, WrongFilesOfMlx) {
  using enum ErrorCode;
  const std::string up_a = kMlxExperts + "up_proj.lora_a", up_b = kMlxExperts + "up_proj.lora_b";
  expect_errors(
      Layout::mlx,
      {{"one side", {floats(up_b, {kExperts, kInner, kRank})}, LO_PAIR, {up_a}},
       {"another rank in b",
        {floats(up_a, {kExperts, kRank, kHidden}), floats(up_b, {kExperts, kInner, 4})},
        LO_SHAPE,
        {up_a}},
       {"the rank of no config",
        {floats(up_a, {kExperts, 4, kHidden}), floats(up_b, {kExperts, kInner, 4})},
        LO_RANK,
        {"rank 4"}},
       {"fewer experts",
        {floats(up_a, {11, kRank, kHidden}), floats(up_b, {11, kInner, kRank})},
        LO_EXPERT,
        {"11 experts"}},
       {"fewer experts in a",
        {floats(up_a, {11, kRank, kHidden}), floats(up_b, {kExperts, kInner, kRank})},
        LO_SHAPE,
        {}},
       {"old form, other length", {floats(up_a, {35, kHidden}), floats(up_b, {kExperts, kInner, kRank})}, LO_SHAPE, {}},
       {"another model",
        {floats(up_a, {kExperts, kRank, 21}), floats(up_b, {kExperts, kInner, kRank})},
        LO_SHAPE,
        {"21"}},
       {"dense as experts",
        {floats(kQuery + ".lora_a", {1, kHidden, kRank}), floats(kQuery + ".lora_b", {1, kRank, 6})},
        LO_SHAPE,
        {"q_proj"}},
       {"no such module",
        {floats("model.x.lora_a", {kHidden, kRank}), floats("model.x.lora_b", {kRank, 6})},
        LO_TARGET,
        {"model.x"}},
       {"a key of PEFT",
        {floats("base_model.model." + kQuery + ".lora_A.weight", {kRank, kHidden})},
        LO_UNUSED,
        {"lora_A"}},
       {"a magnitude of DoRA", {floats(kQuery + ".m", {6})}, LO_UNUSED, {"q_proj.m"}},
       {"nothing", {}, LO_NONE, {}}});
}

TEST_F(Programs, WrongFilesOfTinker) {
  using enum ErrorCode;
  Tensors mixed = stacked_pair("w1", {kExperts, kRank, kHidden}, {kExperts, kInner, kRank});
  mixed.push_back(floats(kExpertsKey + "0.up_proj.lora_A.weight", {kRank, kHidden}));
  mixed.push_back(floats(kExpertsKey + "0.up_proj.lora_B.weight", {kInner, kRank}));
  expect_errors(
      Layout::tinker,
      {{"numbers of experts", stacked_pair("w1", {11, kRank, kHidden}, {kExperts, kInner, kRank}), LO_SHAPE, {"11"}},
       {"fewer experts", stacked_pair("w1", {1, kRank, kHidden}, {11, kInner, kRank}), LO_EXPERT, {"11 experts"}},
       {"another rank", stacked_pair("w2", {kExperts, 4, kInner}, {kExperts, kHidden, 4}), LO_RANK, {}},
       {"two ranks", stacked_pair("w2", {kExperts, kRank, kInner}, {kExperts, kHidden, 4}), LO_SHAPE, {}},
       {"gate as down", stacked_pair("w2", {kExperts, kRank, kHidden}, {kExperts, kInner, kRank}), LO_SHAPE, {}},
       {"two layouts", mixed, LO_LAYOUT, {}}});
}

// 1 on both first axes: only the model knows how many experts there are.
TEST_F(Programs, SharedOnBothSides) {
  const Tensors shared = stacked_pair("w3", {1, kRank, kHidden}, {1, kInner, kRank});
  const OracleFactors with_base = factors_of(read(Layout::tinker, shared));
  EXPECT_EQ(with_base.size(), static_cast<std::size_t>(kExperts));
  compare_factors(with_base, factors_of(read(Layout::tinker, shared, false, kExperts)));
  expect_error(error_of([&] { read(Layout::tinker, shared, false); }), ErrorCode::LO_EXPERT, {"--num-experts"});

  const Input input = read(Layout::tinker, shared);
  ConvertOptions options;
  options.input.base = folder_ / "base";
  convert(input, options, Layout::tinker, folder_ / "again");
  convert(input, options, Layout::peft_fused, folder_ / "fused");
  compare_factors(with_base, factors_of(load(folder_ / "fused", options.input)));
}

// Without a base the shapes show how many experts there are.
TEST_F(Programs, NamesAndShapesSuffice) {
  compare_factors(factors_of(read(Layout::mlx, mlx_pair("down_proj", kHidden, kInner))),
                  factors_of(read(Layout::mlx, mlx_pair("down_proj", kHidden, kInner), false)));
  const Tensors stacked = stacked_pair("w1", {1, kRank, kHidden}, {kExperts, kInner, kRank});
  compare_factors(factors_of(read(Layout::tinker, stacked)), factors_of(read(Layout::tinker, stacked, false)));
}

TEST_F(Programs, OneSidedTargetsStayOneSided) {
  ConvertOptions options;
  options.input.base = folder_ / "base";
  const Input input = read(Layout::mlx, mlx_pair("up_proj", kInner, kHidden));
  for (const Layout layout : {Layout::tinker, Layout::mlx, Layout::peft_per_expert}) {
    const std::string out = folder_ / std::string(info(layout).name);
    convert(input, options, layout, out);
    const Input again = load(out, options.input);
    EXPECT_EQ(again.adapter.weights->tensors().size(), layout == Layout::peft_per_expert ? 2u * kExperts : 2u);
    compare_factors(factors_of(input), factors_of(again));
  }
}

// What these files do not hold is refused, with a way out.
TEST_F(Programs, WhatHasNoForm) {
  const std::string folder = folder_ / "dora";
  std::filesystem::create_directories(folder);
  const std::string key = "base_model.model." + kQuery;
  write_tensors(folder + "/adapter_model.safetensors",
                {floats(key + ".lora_A.weight", {kRank, kHidden}), floats(key + ".lora_B.weight", {6, kRank}),
                 floats(key + ".lora_magnitude_vector", {6})});
  std::ofstream(folder + "/adapter_config.json")
      << R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": true, "target_modules": ["q_proj"]})";
  ConvertOptions options;
  options.input.base = folder_ / "base";
  const Input input = load(folder, options.input);
  for (const Layout layout : {Layout::tinker, Layout::mlx}) {
    options.to = layout;
    expect_error(error_of([&] { plan_convert(input, options); }), ErrorCode::LO_NO_FORM, {"DoRA", "merge"});
    expect_error(error_of([&] { convert_config(folder, options); }), ErrorCode::USAGE,
                 {std::string(info(layout).name)});
  }
}

TEST_F(Programs, ConvolutionsHaveNoForm) {
  const std::string folder = std::string(PEFT_SOURCE_DIR) + "/tests/convolutions/fp32/adapter";
  const Input input = load(folder, {});
  for (const Layout layout : {Layout::tinker, Layout::mlx}) {
    ConvertOptions options;
    options.to = layout;
    expect_error(error_of([&] { plan_convert(input, options); }), ErrorCode::LO_NO_FORM, {"convolution"});
  }
}

// Verbs that compute with factors take the stacked tensors of any program.
TEST_F(Programs, AreCombinedAndResized) {
  for (const Layout own : {Layout::mlx, Layout::tinker}) {
    SCOPED_TRACE(info(own).name);
    const Input input = own == Layout::mlx
                            ? read(own, mlx_pair("up_proj", kInner, kHidden))
                            : read(own, stacked_pair("w3", {1, kRank, kHidden}, {kExperts, kInner, kRank}));
    const OracleFactors want = factors_of(input);
    ResizeOptions resize;
    resize.input.base = folder_ / "base";
    resize.rank = kRank;
    const LowRankResult resized = plan_resize(input.adapter.folder, resize);
    EXPECT_LT(resized.worst, 2e-6);
    const std::string out = folder_ / (std::string(info(own).name) + "-resized");
    materialize(resized.plan, out);
    EXPECT_EQ(factors_of(load(out, resize.input)).size(), want.size());
    CombineOptions combine;
    combine.input = resize.input;
    combine.type = CombineType::cat;
    const std::vector<WeightedAdapter> halves = {{input.adapter.folder, 0.5}, {input.adapter.folder, 0.5}};
    const std::string sum = folder_ / (std::string(info(own).name) + "-sum");
    materialize(plan_combine(halves, combine).plan, sum);
    compare_deltas(want, factors_of(load(sum, resize.input)), 1e-5);
  }
}

// The layers with LoRA are counted from the last one.
TEST_F(Programs, MlxCountsLayersFromTheLast) {
  ConvertOptions options;
  options.input.base = folder_ / "base";
  for (const auto& [module, layers] :
       {std::pair{"model.layers.1.self_attn.q_proj", 1}, {"model.layers.0.self_attn.q_proj", 2}}) {
    const std::string name = std::string(module);
    const Input input =
        read(Layout::mlx, {floats(name + ".lora_a", {kHidden, kRank}), floats(name + ".lora_b", {kRank, 6})});
    const std::string out = folder_ / name;
    convert(input, options, Layout::peft_fused, out);
    convert(load(out, options.input), options, Layout::mlx, out + "-back");
    EXPECT_EQ(read_json(out + "-back/adapter_config.json").at("num_layers"), layers);
  }
}

}  // namespace
}  // namespace peft::testing
