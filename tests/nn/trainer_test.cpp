// The trainer and its parts on small models: gradient checkpointing, packing, going on with a checkpoint, errors.
#include "peft/nn/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "nn/golden_nn.h"
#include "nn/small_models.h"
#include "peft/error.h"
#include "peft/nn/optimizer.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;
using peft::testing::read_file;
using peft::testing::TemporaryFolder;
using ::testing::HasSubstr;

LoraConfig lora_config(double dropout = 0) {
  LoraConfig config;
  config.r = 3, config.lora_alpha = {7, true}, config.lora_dropout = dropout;
  config.target_modules = std::vector<std::string>{"q_proj", "v_proj", "o_proj"};
  if (dropout == 0) config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  config.init_lora_weights = "false";  // B is random, so that every tensor has a gradient
  return config;
}

train::Row row(std::int32_t seed, std::size_t tokens) {
  train::Row row;
  for (std::size_t i = 0; i < tokens; ++i) row.ids.push_back((seed * 31 + static_cast<std::int32_t>(i) * 17) % 61);
  row.labels = row.ids;
  return row;
}

train::Dataset rows_of(std::initializer_list<std::size_t> lengths) {
  train::Dataset data;
  data.hash = "of these rows";
  for (const std::size_t length : lengths)
    data.rows.push_back(row(static_cast<std::int32_t>(data.rows.size()), length));
  return data;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class TrainerTest : public ::testing::Test {
 protected:
  std::unique_ptr<PeftModel> model(const LoraConfig& config, const Json& changes = {}) {
    const auto base = made(folder_, qwen3_moe(changes.is_null() ? Json::object() : changes), {.device = device()});
    return get_peft_model(base, config);
  }
  static std::map<std::string, at::Tensor> gradients(const PeftModel& model) {
    std::map<std::string, at::Tensor> result;
    for (const AdapterTensor& t : model.adapter_tensors())
      if (t.tensor.grad().defined()) result[t.key] = t.tensor.grad().clone();
    return result;
  }
  TemporaryFolder folder_;
};

TEST_F(TrainerTest, TheLossIsThatOfTheLogits) {
  const auto lora = model(lora_config());
  const at::Tensor ids = at::tensor({5, 9, 2, 60, 11, 7, 8, 1, 0, 0}, at::kLong).view({2, 5});
  const at::Tensor mask = at::tensor({1, 1, 1, 1, 1, 1, 1, 1, 0, 0}, at::kLong).view({2, 5});
  const at::Tensor labels = at::tensor({-100, 9, -100, 60, 11, 7, 8, 1, -100, -100}, at::kLong).view({2, 5});
  const ForwardOutput plain = lora->forward({.ids = ids, .mask = mask}),
                      learnt = lora->forward({.ids = ids, .mask = mask, .labels = labels});
  EXPECT_FALSE(learnt.logits.defined());
  const at::Tensor logits = plain.logits.narrow(1, 0, 4).reshape({8, -1}).to(at::kCPU);
  const at::Tensor next = labels.narrow(1, 1, 4).reshape({-1});
  EXPECT_EQ(learnt.predicted_tokens, 5);
  EXPECT_NEAR(learnt.loss.item<double>(), at::cross_entropy_loss(logits, next).item<double>(), 2e-6);
  const at::Tensor kept = logits.index({next.ne(-100)}), p = at::softmax(kept, 1);
  EXPECT_NEAR(learnt.entropy.item<double>(), -(p * p.log()).sum().item<double>(), 1e-4);
  EXPECT_EQ(learnt.correct.item<std::int64_t>(),
            kept.argmax(1).eq(next.masked_select(next.ne(-100))).sum().item<std::int64_t>());
}

// 600,000 tokens of vocabulary: six rows of logits at a time. The gradients are those of all logits at once; in
// float64, where sums over so many words do not round.
TEST_F(TrainerTest, ALargeVocabularyIsTakenInParts) {
  for (const bool trained_head : {false, true}) {
    LoraConfig config = lora_config();
    if (trained_head) config.target_modules = std::vector<std::string>{"q_proj", "lm_head"};
    const Json changes = {{"vocab_size", 600000}, {"hidden_size", 16}, {"num_hidden_layers", 1}};
    const auto lora =
        get_peft_model(made(folder_, qwen3_moe(changes), {.dtype = at::kDouble, .device = device()}), config);
    const at::Tensor ids = at::arange(0, 15 * 1000, 1000, at::kLong).view({1, 15});
    lora->forward({.ids = ids, .labels = ids}).loss.backward();
    const auto in_parts = gradients(*lora);
    for (at::Tensor t : lora->trainable_parameters()) t.mutable_grad().reset();
    const at::Tensor logits = lora->forward({.ids = ids}).logits;
    at::cross_entropy_loss(logits[0].narrow(0, 0, 14), ids[0].narrow(0, 1, 14).to(logits.device())).backward();
    for (const auto& [key, wanted] : gradients(*lora))
      EXPECT_LE(max_difference(in_parts.at(key), wanted), 1e-10 * peak(wanted)) << key;
  }
}

struct Checkpointed {
  double dropout;
  bool bf16;
};

TEST_F(TrainerTest, CheckpointedGradientsAreTheSameBits) {
  for (const auto& [dropout, bf16] : {Checkpointed{0, false}, Checkpointed{0.3, false}, Checkpointed{0.3, true}}) {
    const auto lora = model(lora_config(dropout));
    const auto gradients_with = [&lora, bf16 = bf16](bool checkpointing) {
      for (at::Tensor t : lora->trainable_parameters()) t.mutable_grad().reset();
      train::Options options;
      options.gradient_checkpointing = checkpointing, options.router_aux_loss_coef = 0.1, options.bf16 = bf16;
      Trainer trainer(*lora, options);
      const auto data = rows_of({9, 13});
      trainer.backward({train::collate({&data.rows[0], &data.rows[1]})});
      return gradients(*lora);
    };
    const auto kept = gradients_with(false), again = gradients_with(true);
    ASSERT_EQ(kept.size(), again.size());
    ASSERT_FALSE(kept.empty());
    for (const auto& [key, gradient] : kept) EXPECT_TRUE(gradient.equal(again.at(key))) << key << " " << dropout;
  }
}

// Products in bfloat16 change the loss in its third digit; the weights, the gradients and what runs afterwards are
// float32.
TEST_F(TrainerTest, AutocastIsOfTheForwardPassAlone) {
  const auto lora = model(lora_config());
  const auto data = rows_of({9, 13});
  const auto batch = train::collate({&data.rows[0], &data.rows[1]});
  train::Options options;
  const StepResult plain = Trainer(*lora, options).backward({batch});
  const train::Evaluation plain_evaluation = Trainer(*lora, options).evaluate(data);
  const auto wanted = gradients(*lora);
  for (at::Tensor t : lora->trainable_parameters()) t.mutable_grad().reset();
  options.bf16 = true;
  const StepResult cast = Trainer(*lora, options).backward({batch});
  EXPECT_NE(cast.loss, plain.loss);
  EXPECT_NEAR(cast.loss, plain.loss, 1e-2 * plain.loss);
  for (const auto& [key, gradient] : gradients(*lora)) {
    EXPECT_EQ(gradient.scalar_type(), at::kFloat) << key;
    EXPECT_LE(max_difference(gradient, wanted.at(key)), 0.1 * peak(wanted.at(key))) << key;
  }
  const train::Evaluation evaluation = Trainer(*lora, options).evaluate(data);
  EXPECT_NE(evaluation.loss, plain_evaluation.loss);
  EXPECT_NEAR(evaluation.loss, plain_evaluation.loss, 1e-2 * plain_evaluation.loss);
  EXPECT_EQ(Trainer(*lora, {}).evaluate(data).loss, plain_evaluation.loss);
}

// PEFT's own gradient under autocast is twice that in float32 here, because the recurrence runs in bfloat16 there.
TEST_F(TrainerTest, AutocastKeepsTheGradientsOfLinearAttention) {
  const auto lora = get_peft_model(load_golden("rt-qwen3_5_moe"), lora_config());
  const auto data = rows_of({9, 13});
  const auto norm_with = [&](bool bf16) {
    train::Options options;
    options.bf16 = bf16;
    Trainer(*lora, options).backward({train::collate({&data.rows[0], &data.rows[1]})});
    double sum = 0;
    for (const auto& [key, gradient] : gradients(*lora)) sum += gradient.square().sum().item<double>();
    for (at::Tensor t : lora->trainable_parameters()) t.mutable_grad().reset();
    return std::sqrt(sum);
  };
  const double exact = norm_with(false), cast = norm_with(true);
  EXPECT_NE(cast, exact);
  EXPECT_NEAR(cast, exact, 0.15 * exact);
}

TEST_F(TrainerTest, DropoutIsDrawnAnewInEachStep) {
  const auto lora = model(lora_config(0.3));
  train::Options options;
  options.learning_rate = 0;
  Trainer trainer(*lora, options), same(*lora, options);
  const auto data = rows_of({9});
  const auto batch = train::collate({&data.rows[0]});
  const double first = trainer.step({batch}, 0).loss, second = trainer.step({batch}, 0).loss;
  EXPECT_NE(first, second);
  EXPECT_EQ(same.step({batch}, 0).loss, first);
}

// Attention, linear attention with its convolution, and positions: nothing of one document reaches the next.
TEST_F(TrainerTest, PackedDocumentsAreWhatTheyAreAlone) {
  std::vector<std::shared_ptr<CausalLM>> bases = {made(folder_, qwen3_moe(Json::object()), {.device = device()})};
  if (has_model("rt-qwen3_5_moe_text")) bases.push_back(load_golden("rt-qwen3_5_moe_text"));
  for (const auto& base : bases) {
    LoraConfig config = lora_config();
    const auto lora = get_peft_model(base, config);
    const auto data = rows_of({7, 12, 3});
    const auto packed = train::packed(data, 32);
    ASSERT_EQ(packed.rows.size(), 1U);
    Trainer trainer(*lora, {});
    const StepResult together = trainer.backward({train::collate({&packed.rows[0]})});
    const auto wanted = gradients(*lora);
    for (at::Tensor t : lora->trainable_parameters()) t.mutable_grad().reset();
    std::vector<train::MicroBatch> alone;
    for (const train::Row& r : data.rows) alone.push_back(train::collate({&r}));
    const StepResult apart = trainer.backward(alone);
    EXPECT_EQ(together.predicted, 6 + 11 + 2);
    EXPECT_EQ(together.predicted, apart.predicted);
    EXPECT_NEAR(together.loss, apart.loss, 2e-6);
    for (const auto& [key, gradient] : gradients(*lora))
      EXPECT_LE(max_difference(gradient, wanted.at(key)), 2e-5 * peak(wanted.at(key)) + 1e-9) << key;
  }
}

TEST_F(TrainerTest, ARunThatGoesOnGivesTheSameBytes) {
  const auto data = rows_of({9, 13, 5, 8, 11, 6, 7});
  train::Options options;
  options.per_device_train_batch_size = 2, options.gradient_accumulation_steps = 2, options.max_steps = 7;
  options.learning_rate = 1e-2, options.save_steps = 0, options.warmup_steps = 2;
  const TemporaryFolder out;
  const auto run = [&](const std::string& name, const train::Options& with, bool resume) {
    const auto lora = model(lora_config(0.2));
    Trainer trainer(*lora, with);
    if (resume) trainer.load_checkpoint(newest_checkpoint(out / name), data);
    return trainer.run(data, {.out = out / name});
  };
  EXPECT_EQ(run("whole", options, false), TrainEnd::finished);
  train::Options stopping = options;
  stopping.stop_after_steps = 3;
  EXPECT_EQ(run("parts", stopping, false), TrainEnd::stopped_after_steps);
  EXPECT_EQ(newest_checkpoint(out / "parts"), out / "parts/checkpoint-3");
  EXPECT_FALSE(fs::exists(out / "parts/adapter_model.safetensors"));
  EXPECT_EQ(run("parts", options, true), TrainEnd::finished);
  for (const char* file : {"adapter_model.safetensors", "adapter_config.json"})
    EXPECT_EQ(read_file(out / ("whole/" + std::string(file))), read_file(out / ("parts/" + std::string(file)))) << file;
}

TEST_F(TrainerTest, ACheckpointOfAnotherRunIsRefused) {
  auto data = rows_of({9, 13});
  train::Options options;
  options.max_steps = 5, options.stop_after_steps = 1;
  const TemporaryFolder out;
  const auto lora = model(lora_config());
  Trainer(*lora, options).run(data, {.out = out / "run"});
  const std::string checkpoint = newest_checkpoint(out / "run");
  train::Options other = options;
  other.learning_rate = 1;
  EXPECT_THAT(error_of([&] { Trainer(*lora, other).load_checkpoint(checkpoint, data); }), HasSubstr("learning_rate"));
  data.hash = "of other rows";
  EXPECT_THAT(error_of([&] { Trainer(*lora, options).load_checkpoint(checkpoint, data); }), HasSubstr("data"));
}

TEST_F(TrainerTest, CheckpointsBeyondTheLimitGoAndTheBestStays) {
  const auto data = rows_of({9, 13, 7, 5});
  train::Options options;
  options.per_device_train_batch_size = 1, options.max_steps = 6, options.save_steps = 1;
  options.save_total_limit = 2, options.eval_steps = 1, options.learning_rate = 5e-2;
  const TemporaryFolder out;
  const auto lora = model(lora_config());
  Trainer trainer(*lora, options);
  std::vector<std::string> saved;
  TrainRun run{.out = out / "run", .eval = &data};
  run.callbacks.on_save = [&](const std::string& folder) { saved.push_back(folder); };
  trainer.run(data, run);
  EXPECT_EQ(saved.size(), 6U);
  std::size_t left = 0;
  for (const std::string& folder : saved) left += fs::exists(folder) ? 1 : 0;
  EXPECT_LE(left, 3U);
  EXPECT_TRUE(fs::exists(out / "run/checkpoint-6"));
  EXPECT_TRUE(fs::exists(out / ("run/checkpoint-" + std::to_string(trainer.state().best_step))));
}

TEST_F(TrainerTest, WhatIsNotFiniteStopsTheRunWithItsStep) {
  const auto lora = model(lora_config());
  Trainer trainer(*lora, {});
  const auto data = rows_of({9});
  const auto batch = train::collate({&data.rows[0]});
  trainer.step({batch}, 1e-3);
  // In all of them: attention kernels of some CPUs give zeros for queries that are NaN, and the loss stays a number.
  for (const at::Tensor& tensor : lora->trainable_parameters())
    tensor.detach().fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(error_of([&] { trainer.step({batch}, 1e-3); }), HasSubstr("step 2: the loss is not finite"));
}

TEST_F(TrainerTest, StateDictsGoThereAndBack) {
  const auto lora = model(lora_config());
  std::vector<std::pair<std::string, at::Tensor>> state;
  for (const auto& [key, tensor] : lora->state_dict()) state.emplace_back(key, at::randn_like(tensor.contiguous()));
  lora->load_state_dict(state);
  const auto after = lora->state_dict();
  ASSERT_EQ(after.size(), state.size());
  for (std::size_t i = 0; i < state.size(); ++i) EXPECT_TRUE(after[i].second.equal(state[i].second)) << state[i].first;
  const auto last = state.back();
  state.pop_back();
  EXPECT_THAT(error_of([&] { lora->load_state_dict(state); }), HasSubstr("LO_MISSING"));
  state.push_back(last), state.emplace_back("another", at::ones({1}));
  EXPECT_THAT(error_of([&] { lora->load_state_dict(state); }), HasSubstr("LO_UNUSED"));
}

// Two adapters in one batch, of which one alone is active: each gets the gradient of its own sequences.
TEST_F(TrainerTest, AMixedBatchGivesEachAdapterItsGradient) {
  const auto lora = model(lora_config());
  lora->add_adapter("other", lora_config(), {.seed = 9});
  lora->set_requires_grad({"default", "other"});
  const at::Tensor ids = at::tensor({5, 9, 2, 60, 11, 7, 8, 1, 3, 4, 5, 6}, at::kLong).view({3, 4});
  const std::vector<std::string> names = {"default", "other", base_name};
  const auto gradients_of = [&](const std::string& name) {
    std::map<std::string, at::Tensor> result;
    for (const AdapterTensor& t : lora->adapter_tensors(name)) {
      if (t.tensor.grad().defined()) result[t.key] = t.tensor.grad().clone();
      at::Tensor(t.tensor).mutable_grad().reset();
    }
    return result;
  };
  lora->forward({.ids = ids}, {.adapter_names = names}).logits.square().sum().backward();
  const std::map<std::string, std::map<std::string, at::Tensor>> mixed = {{"default", gradients_of("default")},
                                                                          {"other", gradients_of("other")}};
  for (std::int64_t row = 0; row < 2; ++row) {
    const std::string& name = names[static_cast<std::size_t>(row)];
    lora->set_adapter(name);
    lora->forward({.ids = ids.narrow(0, row, 1)}).logits.square().sum().backward();
    const auto alone = gradients_of(name);
    ASSERT_EQ(alone.size(), lora->adapter_tensors(name).size());
    for (const auto& [key, wanted] : alone)
      EXPECT_LE(max_difference(mixed.at(name).at(key), wanted), 1e-5 * peak(wanted) + 1e-9) << name << " " << key;
  }
}

TEST_F(TrainerTest, EmbeddingsServeInPlaceOfIds) {
  const auto base = made(folder_, qwen3_moe(Json::object()), {.device = device()});
  const at::Tensor ids = at::tensor({5, 9, 2, 60, 11, 7}, at::kLong).view({2, 3}).to(base->device());
  at::Tensor table;
  for (const auto& [name, tensor] : base->parameters())
    if (name == "model.embed_tokens.weight") table = tensor;
  const at::NoGradGuard no_gradients;
  EXPECT_TRUE(base->forward({.embeds = at::embedding(table, ids)}).logits.equal(base->forward({.ids = ids}).logits));
}

TEST(Optimizer, HalfPrecisionTensorsHaveAnFp32State) {
  at::Tensor tensor = at::full({3}, 1.0, at::kBFloat16).requires_grad_(true);
  AdamW optimizer({{"bias", tensor, {}, {}}}, {.weight_decay = 0.5});
  tensor.mutable_grad() = at::tensor({1.0, -2.0, 0.0}).to(at::kBFloat16);
  optimizer.step(0.125);
  // The first step is the sign of the gradient; a gradient of zero leaves the decay.
  EXPECT_TRUE(tensor.detach().to(at::kFloat).allclose(at::tensor({0.8125F, 1.0625F, 0.9375F})));
  EXPECT_EQ(optimizer.state().front().second.scalar_type(), at::kFloat);
}

TEST(Optimizer, LoraPlusRatesAreThoseOfPeft) {
  const at::Tensor two = at::zeros({2, 3}), one = at::zeros({2});
  const std::vector<AdapterTensor> tensors = {{"x.lora_A.weight", two, {}, {}},
                                              {"x.lora_B.weight", two, {}, {}},
                                              {"x.lora_magnitude_vector", one, {}, {}},
                                              {"e.lora_embedding_B", two, {}, {}}};
  EXPECT_THAT(loraplus_factors(tensors, 16, 1e-6, 1e-4), ::testing::ElementsAre(1, 16, 16, ::testing::DoubleEq(0.01)));
}

}  // namespace
}  // namespace peft::nn::testing
