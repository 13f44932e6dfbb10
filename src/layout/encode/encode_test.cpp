#include "layout/encode/encode.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "peft/error.h"
#include "support/adapter_maker.h"
#include "support/judge.h"

namespace peft::layout {
namespace {

using namespace testing;  // NOLINT: the makers of adapters

const Site kConvolution{"model.vision.patch_embed", "", -1, Projection::none};

// Two linear layers of scale 1, and a convolution of 3 x 3 with its own scale and rank.
Input with_convolution(double scale, std::int64_t rank) {
  Maker maker;
  maker.pair(kDense, random_dense(3, 8, 1), random_dense(12, 3, 2));
  maker.pair({"model.layers.0.self_attn.k_proj", "", -1, Projection::none}, random_dense(3, 8, 3),
             random_dense(6, 3, 4));
  const auto a = maker.tensors().add("conv_a", Dtype::f32, {rank, 4, 3, 3},
                                     std::vector<double>(static_cast<std::size_t>(rank * 36), 1));
  const auto b = maker.tensors().add("conv_b", Dtype::f32, {5, rank, 1, 1},
                                     std::vector<double>(static_cast<std::size_t>(5 * rank), 1));
  maker.factor(kConvolution, {0, a, 0, rank, 36, 36, 1}, {0, b, 0, 5, rank, rank, 1}, scale);
  return maker.input();
}

Encoded encode_evenly(const Input& input, bool one_rank, bool one_scale) {
  EncodeOptions options;
  options.to = Layout::peft_per_expert;
  options.one_rank = one_rank, options.one_scale = one_scale;
  return encode(input.reading.factors, input.model, input.adapter.weights.get(), options);
}

const PlannedTensor& tensor(const Encoded& encoded, std::string_view name) {
  return *std::ranges::find(encoded.tensors, "base_model.model." + std::string(name), &PlannedTensor::name);
}

TEST(Encode, a_convolution_whose_scale_is_folded_keeps_its_shape) {
  const Encoded encoded = encode_evenly(with_convolution(2, 3), true, true);
  EXPECT_TRUE(encoded.evened);
  const PlannedTensor &a = tensor(encoded, "model.vision.patch_embed.lora_A.weight"),
                      &b = tensor(encoded, "model.vision.patch_embed.lora_B.weight");
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{3, 4, 3, 3}));
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{5, 3, 1, 1}));
  ASSERT_EQ(b.blocks.size(), 1u);
  EXPECT_EQ(b.blocks[0].scale, 2);
  for (const TargetEntry& target : encoded.targets) EXPECT_EQ(target.scale, 1) << target.name;
}

TEST(Encode, a_convolution_is_not_padded) {
  const Error error = expect_error("ranks 3 and 2", [] { encode_evenly(with_convolution(1, 2), true, false); });
  EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM);
}

TEST(Encode, ranks_are_padded_and_scales_are_folded_as_asked) {
  Maker maker;
  maker.pair(kDense, random_dense(3, 8, 1), random_dense(12, 3, 2));
  maker.pair({"model.layers.0.self_attn.k_proj", "", -1, Projection::none}, random_dense(3, 8, 3),
             random_dense(6, 3, 4));
  maker.pair({"model.layers.0.self_attn.v_proj", "", -1, Projection::none}, random_dense(2, 8, 5),
             random_dense(6, 2, 6), 0.5);
  const Input input = maker.input();
  const std::string v = "model.layers.0.self_attn.v_proj.";
  const Encoded padded = encode_evenly(input, true, false), folded = encode_evenly(input, false, true);
  EXPECT_EQ(tensor(padded, v + "lora_A.weight").shape, (std::vector<std::int64_t>{3, 8}));
  EXPECT_EQ(tensor(padded, v + "lora_B.weight").shape, (std::vector<std::int64_t>{6, 3}));
  EXPECT_EQ(tensor(padded, v + "lora_B.weight").blocks[0].scale, 1);
  EXPECT_EQ(tensor(folded, v + "lora_A.weight").shape, (std::vector<std::int64_t>{2, 8}));
  EXPECT_EQ(tensor(folded, v + "lora_B.weight").blocks[0].scale, 0.5);
  EXPECT_FALSE(encode_evenly(input, false, false).evened);
}

}  // namespace
}  // namespace peft::layout
