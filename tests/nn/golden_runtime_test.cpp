// golden/runtime: logits and every step of a forward pass, as the real transformers recorded them.
#include <gtest/gtest.h>

#include "nn/golden_nn.h"
#include "nn/model/network.h"
#include "peft/nn/model.h"

namespace peft::nn::testing {
namespace {

class Runtime : public ::testing::TestWithParam<std::string> {
 protected:
  Runtime()
      : json_(case_json("runtime", GetParam())),
        ids_(ids_tensor(json_["input_ids"])),
        mask_(ids_tensor(json_["attention_mask"])) {}

  std::shared_ptr<CausalLM> load(const std::string& key, at::ScalarType dtype) const {
    return load_golden(json_[key], dtype);
  }
  Tensors expected(const std::string& key) const {
    return read_tensors(golden_root() / "runtime" / GetParam() / json_["expect"][key].get<std::string>());
  }
  double tolerance(const char* dtype) const { return allowed(json_["expect"]["tolerance"][dtype]["base"]["abs"]); }
  at::Tensor real(const at::Tensor& logits) const { return masked("logits", logits, mask_); }

  Json json_;
  at::Tensor ids_, mask_;
};

TEST_P(Runtime, BaseLogits) {
  const at::Tensor wanted = expected("base").at("logits"), got = load("model", at::kFloat)->logits(ids_, mask_);
  EXPECT_LE(max_difference(real(got), real(wanted)), tolerance("fp32"));
}

TEST_P(Runtime, CheckpointOfTransformers4) {
  if (json_["model_v4"].is_null()) GTEST_SKIP() << "one form only";
  if (!has_model(json_["model_v4"])) GTEST_SKIP() << "not in this selection of the golden data";
  const auto v4 = load("model_v4", at::kFloat), v5 = load("model", at::kFloat);
  const auto left = v4->parameters(), right = v5->parameters();
  ASSERT_EQ(left.size(), right.size());
  for (std::size_t i = 0; i < left.size(); ++i) {
    EXPECT_EQ(left[i].first, right[i].first);
    EXPECT_TRUE(left[i].second.equal(right[i].second)) << left[i].first;
  }
  EXPECT_LE(max_difference(real(v4->logits(ids_, mask_)), real(expected("base").at("logits"))), tolerance("fp32"));
}

TEST_P(Runtime, WithoutMask) {
  const at::Tensor wanted = expected("no_mask").at("base.logits");
  EXPECT_LE(max_difference(load("model", at::kFloat)->logits(ids_), wanted), tolerance("fp32"));
}

TEST_P(Runtime, BFloat16) {
  const auto model = load("model", at::kBFloat16);
  const at::Tensor wanted = expected("bf16").at("base.logits");
  const double difference = max_difference(real(model->logits(ids_, mask_)), real(wanted));
  EXPECT_LE(difference, tolerance("bf16"));
}

TEST_P(Runtime, EveryStep) {
  const auto model = load("model", at::kFloat);
  Tensors recorded;
  const Recorder recorder = [&recorded](const std::string& name, const at::Tensor& value) {
    recorded[name] = value.clone();
  };
  at::NoGradGuard no_gradients;
  ForwardContext context;
  context.recorder = &recorder;
  model->forward({.ids = ids_, .mask = mask_, .positions = {}}, context);
  const double share = GetParam().starts_with("qwen3_5") ? 8e-5 : 2e-5;
  for (const auto& [name, wanted] : expected("base")) {
    ASSERT_TRUE(recorded.contains(name)) << name;
    at::Tensor got = recorded[name], want = wanted;
    if (name.starts_with("rope."))
      want = want.narrow(-1, 0, got.size(-1)).expand_as(got.expand_as(want.narrow(-1, 0, got.size(-1))));
    got = masked(name, got, mask_), want = masked(name, want, mask_);
    if (want.scalar_type() == at::kLong)
      EXPECT_TRUE(got.equal(want)) << name;
    else
      EXPECT_LE(max_difference(got, want), share * std::max(peak(want), 1e-30)) << name;
  }
}

// With gradients the parts are computed otherwise, and must be the same function.
TEST_P(Runtime, GradientsFlowAndTheLogitsAreTheSame) {
  const auto model = load("model", at::kFloat);
  for (auto& [name, tensor] : model->parameters()) tensor.requires_grad_(true);
  const at::Tensor logits = model->forward({.ids = ids_, .mask = mask_, .positions = {}}, {}).logits;
  EXPECT_LE(max_difference(real(logits.detach()), real(expected("base").at("logits"))), tolerance("fp32"));
  real(logits).square().mean().backward();
  for (const auto& [name, tensor] : model->parameters()) {
    if (name.starts_with("model.visual")) continue;
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_TRUE(tensor.grad().isfinite().all().item<bool>()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
  }
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Golden, Runtime, ::testing::ValuesIn(cases("runtime")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Runtime);

class Generate : public ::testing::TestWithParam<std::string> {};

TEST_P(Generate, BaseTokensAndLogits) {
  const Json json = case_json("generate", GetParam());
  const auto model = load_golden(json["model"]);
  for (const char* key : {"base.single", "base.padded"}) {
    const Json& expect = json["expect"][key];
    std::vector<at::Tensor> steps;
    GenerateOptions options{.max_new_tokens = static_cast<std::int64_t>(expect["new_tokens"][0].size())};
    options.on_logits = [&steps](const at::Tensor& logits) { steps.push_back(logits.clone()); };
    const auto tokens =
        generate(*model, ids_tensor(expect["input_ids"]), ids_tensor(expect["attention_mask"]), options);
    EXPECT_EQ(tokens, expect["new_tokens"].get<std::vector<std::vector<std::int64_t>>>()) << key;
    const std::string place = expect["logits"];
    const std::size_t colon = place.find(':');
    const Tensors file = read_tensors(golden_root() / "generate" / GetParam() / place.substr(0, colon));
    EXPECT_LE(max_difference(at::stack(steps), file.at(place.substr(colon + 1))), expect["tolerance"].get<double>())
        << key;
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, Generate, ::testing::ValuesIn(cases("generate")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Generate);

}  // namespace
}  // namespace peft::nn::testing
