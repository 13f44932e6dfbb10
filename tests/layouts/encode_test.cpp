// encode(), as a program calls it whose factors lie in memory: an adapter of any layout, which reads as the same
// function.
#include <gtest/gtest.h>

#include <filesystem>

#include "peft/execute.h"
#include "peft/layout.h"
#include "support/adapter_maker.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

constexpr std::int64_t kExperts = 11, kHidden = 12, kIntermediate = 10, kRank = 3;

class EncodeTest : public ::testing::TestWithParam<Layout> {
 protected:
  void SetUp() override {
    write_model(base_.path(), {.hidden = kHidden, .intermediate = kIntermediate, .experts = kExperts});
    model_ = describe({.base = base_.path().string()});
    Maker maker(Dtype::f32);
    std::uint64_t seed = 0;
    for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
      const bool down = projection == Projection::down;
      const std::int64_t in = down ? kIntermediate : kHidden, out = down ? kHidden : kIntermediate;
      for (std::int64_t e = 0; e < kExperts; ++e, seed += 2)
        maker.pair(expert_site(e, projection), random_dense(kRank, in, seed), random_dense(out, kRank, seed + 1), 2);
    }
    input_ = maker.input();
    input_.reading.factors.expert_counts.push_back({"model.layers.0.mlp.experts", kExperts});
  }

  TemporaryFolder base_, out_;
  Model model_;
  Input input_;
};

TEST_P(EncodeTest, ReadsAsTheSameFunction) {
  AdapterConfig config;
  config.base_model_name_or_path = "mistralai/Mixtral-8x7B-v0.1";
  const Plan plan = encode(input_.reading.factors, input_.adapter.weights, model_, GetParam(), config);
  EXPECT_LE(plan.exactness, Exactness::value_exact);
  EXPECT_GT(plan.bytes_out, 0u);
  const std::string folder = out_ / "adapter";
  if (GetParam() == Layout::gguf) std::filesystem::create_directories(folder);
  execute(plan, path_of(folder, GetParam()), {.sync = false});
  InputOptions options;
  options.base = base_.path().string();
  const Input again = load_as(folder, options, GetParam());
  EXPECT_EQ(again.reading.layout, GetParam());
  EXPECT_EQ(again.reading.factors.factors.size(), 3u * kExperts);
  compare_deltas(factors_of(input_), factors_of(again), kExact);
  if (again.adapter.form == AdapterForm::peft) {
    EXPECT_EQ(again.adapter.config.base_model_name_or_path, config.base_model_name_or_path);
  }
}

std::vector<Layout> all_layouts() {
  std::vector<Layout> result;
  for (const LayoutInfo& layout : layouts()) result.push_back(layout.layout);
  return result;
}

TEST(EncodeErrors, WhatALayoutCannotHoldHasAWayOut) {
  Maker maker;
  maker.pair(kDense, random_dense(kRank, 8, 1), random_dense(12, kRank, 2));
  maker.extra(ExtraKind::magnitude, kDense, "lora_magnitude_vector", Dtype::f32, {12}, std::vector<double>(12, 1));
  const Input input = maker.input();
  const Error error = expect_error("DoRA in Tinker's layout", [&] {
    encode(input.reading.factors, input.adapter.weights, input.model, Layout::tinker);
  });
  EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM);
  EXPECT_FALSE(error.detail().hint.empty());
}

INSTANTIATE_TEST_SUITE_P(Layouts, EncodeTest, ::testing::ValuesIn(all_layouts()), [](const auto& test) {
  std::string name(peft::info(test.param).name);
  std::ranges::replace_if(
      name, [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
});

}  // namespace
}  // namespace peft::testing
