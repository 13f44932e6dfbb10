// Behaviour that PEFT's own tests ask for (docs/notes/peft_tests.md), on a small model.
#include <gtest/gtest.h>

#include <limits>

#include "nn/small_models.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;

class Parity : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ = made(folder_, qwen3_moe({{"attention_bias", true}}), {});
    ids_ = at::tensor(std::vector<std::int64_t>{5, 9, 11, 3, 8, 2, 7, 1}, at::kLong).view({2, 4});
    plain_ = base_->logits(ids_);
  }
  static LoraConfig config(std::vector<std::string> targets = {"q_proj", "v_proj"}) {
    LoraConfig c;
    c.r = 4;
    c.lora_alpha = {8};
    c.target_modules = std::move(targets);
    c.init_lora_weights = "false";
    c.task_type = "CAUSAL_LM";
    return c;
  }
  static LoraConfig parameters(std::vector<std::string> targets) {
    LoraConfig c = config({});
    c.target_parameters = std::move(targets);
    return c;
  }
  static std::string message(const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  static void fill(const PeftModel& model, const std::string& end, double value) {
    const at::NoGradGuard no_grad;
    for (const AdapterTensor& tensor : model.adapter_tensors()) {
      if (tensor.key.ends_with(end)) at::Tensor(tensor.tensor).fill_(value);
    }
  }
  at::Tensor weight(const std::string& name) const {
    for (const auto& [known, tensor] : base_->parameters()) {
      if (known == name) return tensor;
    }
    throw std::runtime_error(name);
  }

  TemporaryFolder folder_;
  std::shared_ptr<CausalLM> base_;
  at::Tensor ids_, plain_;
};

TEST_F(Parity, SafeMergeLooksAtTheBiasToo) {
  LoraConfig c = config({"q_proj"});
  c.lora_bias = true;
  const auto model = get_peft_model(base_, c);
  const std::string name = "model.layers.0.self_attn.q_proj.";
  const at::Tensor before = weight(name + "weight").clone(), bias = weight(name + "bias").clone();
  fill(*model, "lora_B.bias", std::numeric_limits<double>::infinity());
  EXPECT_NE(message([&] { model->merge_adapter({.safe_merge = true}); }).find("NUM_NONFINITE"), std::string::npos);
  EXPECT_TRUE(weight(name + "weight").equal(before));
  EXPECT_TRUE(weight(name + "bias").equal(bias));

  // And at the weight, as before.
  fill(*model, "lora_B.bias", 0.5);
  const at::Tensor b = model->adapter_tensors()[1].tensor.detach().clone();
  fill(*model, "lora_B.weight", std::numeric_limits<double>::infinity());
  EXPECT_NE(message([&] { model->merge_adapter({.safe_merge = true}); }).find("NUM_NONFINITE"), std::string::npos);
  EXPECT_TRUE(weight(name + "weight").equal(before));
  EXPECT_TRUE(weight(name + "bias").equal(bias));
  {
    const at::NoGradGuard no_grad;
    for (const AdapterTensor& tensor : model->adapter_tensors()) {
      if (tensor.key.ends_with("lora_B.weight")) at::Tensor(tensor.tensor).copy_(b);
    }
  }
  const at::Tensor logits = model->logits(ids_);
  for (const bool safe : {false, true}) {
    model->merge_adapter({.safe_merge = safe});
    EXPECT_LE(max_difference(weight(name + "bias"), bias + 0.5 * 2), 1e-6) << safe;  // times lora_alpha / r
    EXPECT_LE(max_difference(model->logits(ids_), logits), 1e-5 * peak(logits)) << safe;
    model->unmerge_adapter();
    EXPECT_TRUE(weight(name + "bias").equal(bias)) << safe;
  }
}

TEST_F(Parity, ALoraBiasWithoutABiasIsWarnedOf) {
  LoraConfig c = config({"lm_head"});
  c.lora_bias = true;
  const auto model = get_peft_model(base_, c);
  ASSERT_FALSE(model->warnings().empty());
  EXPECT_NE(model->warnings().back().find("lm_head: lora_bias cannot be merged"), std::string::npos);
  EXPECT_NE(message([&] { model->merge_adapter(); }).find("CF_UNSUP"), std::string::npos);
}

TEST_F(Parity, AModuleAndItsParameterAreNotTargetsTogether) {
  LoraConfig both = config({"q_proj"});
  both.target_parameters = {"self_attn.q_proj.weight"};
  EXPECT_NE(message([&] { get_peft_model(base_, both); }).find("its module is a target too"), std::string::npos);
  // Nor by two adapters. The factors of an embedding differ in shape: [4, 64] by name, [4, 32] by parameter.
  for (const std::string module : {"embed_tokens", "q_proj"}) {
    const LoraConfig by_name = config({module}), by_parameter = parameters({module + ".weight"});
    for (const bool name_first : {true, false}) {
      const auto model = get_peft_model(base_, name_first ? by_name : by_parameter);
      const at::Tensor logits = model->logits(ids_);
      const std::string said =
          message([&] { model->add_adapter("other", name_first ? by_parameter : by_name, {.seed = 1}); });
      EXPECT_NE(said.find("CF_TARGET"), std::string::npos) << module << name_first << said;
      EXPECT_NE(said.find(module + ".weight"), std::string::npos) << module << name_first << said;
      EXPECT_EQ(model->adapter_names(), std::vector<std::string>{"default"});
      EXPECT_TRUE(model->logits(ids_).equal(logits));
      model->delete_adapter("default");  // then the other kind may sit there
      model->add_adapter("other", name_first ? by_parameter : by_name);
      model->set_adapter("other");
      EXPECT_FALSE(model->logits(ids_).equal(plain_));
      EXPECT_EQ(model->state_dict("other").front().second.size(1), module == "q_proj" ? 32 : name_first ? 32 : 64);
    }
  }
}

TEST_F(Parity, AModuleAndItsParameterAreTheSameUpdate) {
  // k_proj is not square: swapped factors would not even fit.
  const at::Tensor by_name = get_peft_model(base_, config({"k_proj"}), {.seed = 2})->logits(ids_);
  const auto model = get_peft_model(base_, parameters({"k_proj.weight"}), {.seed = 2});
  EXPECT_FALSE(by_name.equal(plain_));
  EXPECT_LE(max_difference(model->logits(ids_), by_name), 1e-6 * peak(by_name));
}

TEST_F(Parity, OnlyOneAdapterTrainsBiases) {
  LoraConfig biased = config();
  biased.bias = "all";
  const auto model = get_peft_model(base_, biased);
  for (const LoraConfig& second : {biased, config()}) {
    EXPECT_NE(
        message([&] { model->add_adapter("other", second); }).find("only one adapter of a model can train biases"),
        std::string::npos);
  }
  EXPECT_EQ(model->adapter_names(), std::vector<std::string>{"default"});
}

TEST_F(Parity, AGuardLeavesAnUnloadedBaseAlone) {
  LoraConfig c = config();
  c.modules_to_save = {"lm_head"};
  auto model = get_peft_model(base_, c);
  fill(*model, "lm_head.weight", 0.25);
  EXPECT_FALSE(model->logits(ids_).equal(plain_));
  {
    const auto off = model->disable_adapter();
    EXPECT_TRUE(model->unload()->logits(ids_).equal(plain_));
  }
  EXPECT_TRUE(base_->logits(ids_).equal(plain_));
  // The object has no model any more, and says so.
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { model->logits(ids_); }, [&] { model->set_adapter("default"); }, [&] { model->merge_adapter(); },
           [&] { model->unload(); }, [&] { model->delete_adapter("default"); }, [&] { model->get_model_status(); },
           [&] { model->add_adapter("other", config()); },
           [&] { [[maybe_unused]] auto off = model->disable_adapter(); }}) {
    EXPECT_NE(message(call).find("was unloaded"), std::string::npos);
  }
  // A guard that lives longer than its model.
  model = get_peft_model(base_, c);
  auto guard = std::make_unique<PeftModel::DisabledAdapters>(*model);
  model.reset();
  guard.reset();
  EXPECT_TRUE(base_->logits(ids_).equal(plain_));
  // Merged for good while they are disabled.
  model = get_peft_model(base_, config());
  const at::Tensor logits = model->logits(ids_);
  {
    const auto off = model->disable_adapter();
    EXPECT_LE(max_difference(model->merge_and_unload()->logits(ids_), logits), 1e-5 * peak(logits));
  }
  EXPECT_LE(max_difference(base_->logits(ids_), logits), 1e-5 * peak(logits));
}

TEST_F(Parity, GuardsNestAndTakeOutWhatIsMergedBelowThem) {
  const auto model = get_peft_model(base_, config());
  const at::Tensor logits = model->logits(ids_);
  {
    const auto outer = model->disable_adapter();
    {
      const auto inner = model->disable_adapter();
      EXPECT_TRUE(model->logits(ids_).equal(plain_));
    }
    EXPECT_TRUE(model->logits(ids_).equal(plain_));
    EXPECT_FALSE(model->get_model_status().enabled);
    model->merge_adapter();
    EXPECT_TRUE(model->logits(ids_).equal(plain_));
  }
  EXPECT_TRUE(model->logits(ids_).equal(logits));
}

// A tensor that its owner froze stays frozen when others come and go.
TEST_F(Parity, AddingAnAdapterLeavesTheGradientsOfOthers) {
  const auto model = get_peft_model(base_, config());
  at::Tensor frozen = model->trainable_parameters().front();
  frozen.requires_grad_(false);
  const std::size_t trained = model->trainable_parameters().size();
  EXPECT_TRUE(model->get_model_status().requires_grad.at("default").irregular);
  model->add_adapter("other", config());
  model->delete_adapter("other");
  EXPECT_FALSE(frozen.requires_grad());
  EXPECT_EQ(model->trainable_parameters().size(), trained);
  model->set_requires_grad("default");
  EXPECT_EQ(model->trainable_parameters().size(), trained + 1);
  EXPECT_NE(message([&] {
              model->set_requires_grad({"default", "nobody"});
            }).find("no adapter of this name"),
            std::string::npos);
}

TEST_F(Parity, SeveralActiveAdaptersAreTrainedTogether) {
  const auto model = get_peft_model(base_, config());
  model->add_adapter("other", config({"k_proj"}));
  model->set_adapter({"default", "other"});
  EXPECT_TRUE(model->get_model_status().requires_grad.at("other") == true);
  EXPECT_TRUE(model->get_model_status().requires_grad.at("default") == true);
  model->delete_adapter("other");
  EXPECT_EQ(model->active_adapters(), std::vector<std::string>{"default"});
  model->add_adapter("other", config());
  model->add_adapter("third", config());
  model->add_weighted_adapter({"default", "other"}, {1, 1}, "sum", {.combination_type = "cat"});
  EXPECT_TRUE(model->get_model_status().requires_grad.at("sum") == false);
}

TEST_F(Parity, ANegativeWeightNegates) {
  const auto model = get_peft_model(base_, config());
  model->add_weighted_adapter({"default"}, {-1}, "minus", {.combination_type = "linear"});
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_LE(max_difference(model->get_delta_weight(name, "minus"), -model->get_delta_weight(name)), 1e-6);
  model->add_weighted_adapter({"default", "minus"}, {2, 1}, "same", {.combination_type = "cat"});
  EXPECT_LE(max_difference(model->get_delta_weight(name, "same"), model->get_delta_weight(name)), 1e-6);
  model->add_weighted_adapter({"default", "minus"}, {1, 1}, "zero", {.combination_type = "cat"});
  EXPECT_LE(peak(model->get_delta_weight(name, "zero")), 1e-6);
}

TEST_F(Parity, MergingTwiceIsMergingOnce) {
  const auto model = get_peft_model(base_, config());
  model->merge_adapter();
  const at::Tensor once = model->logits(ids_);
  model->merge_adapter();
  EXPECT_TRUE(model->logits(ids_).equal(once));
}

TEST_F(Parity, MergingOneAfterTheOtherIsMergingBoth) {
  const auto model = get_peft_model(base_, config());
  model->add_adapter("other", config({"q_proj", "k_proj"}), {.seed = 3});
  model->set_adapter({"default", "other"});
  const at::Tensor both = model->logits(ids_);
  model->merge_adapter({.adapter_names = {"default"}});
  model->merge_adapter({.adapter_names = {"other"}});
  EXPECT_LE(max_difference(model->logits(ids_), both), 1e-5 * peak(both));
  model->unmerge_adapter();
  EXPECT_TRUE(model->logits(ids_).equal(both));
}

// Only factors change when an optimiser steps.
TEST_F(Parity, OnlyTheAdapterIsUpdated) {
  LoraConfig c = config();
  c.modules_to_save = {"lm_head"};
  const auto model = get_peft_model(base_, c);
  std::map<std::string, at::Tensor> before;
  for (const auto& [name, tensor] : base_->parameters()) before[name] = tensor.clone();
  const at::Tensor logits = model->logits(ids_);
  model->forward({.ids = ids_, .mask = {}, .positions = {}}, {.training = true}).logits.square().mean().backward();
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& tensor : [&] { return model->trainable_parameters(); }()) tensor.sub_(tensor.grad(), 10);
  }
  EXPECT_FALSE(model->logits(ids_).equal(logits));
  model->unload();
  for (const auto& [name, tensor] : base_->parameters()) EXPECT_TRUE(tensor.equal(before.at(name))) << name;
}

TEST_F(Parity, AnAdaptersNameMakesNoDifference) {
  const auto model = get_peft_model(base_, config());
  const at::Tensor logits = model->logits(ids_);
  for (const std::string name : {"q_proj", "lora_A", "0", "weight"}) {
    const TemporaryFolder out;
    const auto base = made(folder_, qwen3_moe({{"attention_bias", true}}), {});
    const auto named = get_peft_model(base, config(), {.adapter_name = name});
    EXPECT_TRUE(named->logits(ids_).equal(logits)) << name;
    named->save_pretrained(out / "saved", {.sync = false});
    named->unload();
    EXPECT_TRUE(PeftModel::from_pretrained(base, (out / "saved") + "/" + name)->logits(ids_).equal(logits)) << name;
  }
}

TEST_F(Parity, TwoAdaptersThatReplaceOneTensorAreNotActiveTogether) {
  LoraConfig c = config();
  c.modules_to_save = {"lm_head"};
  const auto model = get_peft_model(base_, c);
  model->add_adapter("other", c);
  model->add_adapter("plain", config());
  EXPECT_NE(message([&] { model->set_adapter({"default", "other"}); }).find("lm_head.weight"), std::string::npos);
  EXPECT_EQ(model->active_adapters(), std::vector<std::string>{"default"});
  model->set_adapter({"default", "plain"});
  model->delete_adapter("default");
  EXPECT_EQ(model->active_adapters(), std::vector<std::string>{"plain"});
}

TEST_F(Parity, UnknownAndMergedAdaptersAreNotDeleted) {
  const auto model = get_peft_model(base_, config());
  model->add_adapter("other", config());
  EXPECT_NE(message([&] { model->delete_adapter("nobody"); }).find("no adapter of this name"), std::string::npos);
  model->merge_adapter();
  EXPECT_NE(message([&] { model->delete_adapter("default"); }).find("merged"), std::string::npos);
  EXPECT_EQ(model->adapter_names(), (std::vector<std::string>{"default", "other"}));
  model->delete_adapter("other");  // this one is not
  EXPECT_EQ(model->adapter_names(), std::vector<std::string>{"default"});
}

TEST_F(Parity, MixedBatchesAreRefusedWherePeftRefusesThem) {
  const auto model = get_peft_model(base_, config());
  const auto said = [&](const RunOptions& options) { return message([&] { model->logits(ids_, {}, options); }); };
  EXPECT_NE(said({.adapter_names = {"default"}}).find("one name for each sequence"), std::string::npos);
  EXPECT_NE(said({.adapter_names = {"default", "nobody"}}).find("no adapter of this name"), std::string::npos);
  EXPECT_NE(said({.training = true, .adapter_names = {"default", "default"}}).find("inference"), std::string::npos);
  {
    const auto off = model->disable_adapter();
    EXPECT_TRUE(model->logits(ids_, {}, {.adapter_names = {"default", "default"}}).equal(plain_));
  }
  model->merge_adapter();
  EXPECT_NE(said({.adapter_names = {"default", "default"}}).find("merged"), std::string::npos);
}

TEST_F(Parity, AReplacedNormIsNotMixed) {
  LoraConfig c = config();
  c.modules_to_save = {"post_attention_layernorm"};
  const auto model = get_peft_model(base_, c);
  const std::string said = message([&] { model->logits(ids_, {}, {.adapter_names = {"default", base_name}}); });
  EXPECT_NE(said.find("post_attention_layernorm"), std::string::npos) << said;
}

TEST_F(Parity, AMixedBatchGeneratesWhatEachWouldAlone) {
  const auto model = get_peft_model(base_, config());
  model->add_adapter("other", config(), {.seed = 5});
  const at::Tensor ids =
      at::tensor(std::vector<std::int64_t>{5, 9, 11, 3, 5, 9, 11, 3, 5, 9, 11, 3}, at::kLong).view({3, 4});
  const GenerateOptions options{.max_new_tokens = 6};
  const auto mixed = model->generate(ids, {}, options, {.adapter_names = {"other", base_name, "default"}});
  const at::Tensor one = ids.narrow(0, 0, 1);
  const auto first = model->generate(one, {}, options).front();
  model->set_adapter("other");
  const auto second = model->generate(one, {}, options).front();
  const auto off = model->disable_adapter();
  const auto plain = model->generate(one, {}, options).front();
  EXPECT_EQ(mixed, (std::vector<std::vector<std::int64_t>>{second, plain, first}));
  EXPECT_NE(first, second);
}

TEST_F(Parity, AnOddRankHasNoOrthogonalStart) {
  LoraConfig c = config();
  c.init_lora_weights = "orthogonal";
  c.r = 5;
  EXPECT_NE(message([&] { get_peft_model(base_, c); }).find("even rank"), std::string::npos);
}

TEST_F(Parity, WithoutLayersThereIsNoStatus) {
  const auto model = get_peft_model(base_, config());
  model->delete_adapter("default");
  EXPECT_NE(message([&] { model->get_layer_status(); }).find("no adapter layers"), std::string::npos);
}

}  // namespace
}  // namespace peft::nn::testing
