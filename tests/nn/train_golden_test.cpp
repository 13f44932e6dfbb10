// golden/train: fine-tuning as the real PEFT does it in a plain loop. Losses, gradient norms and learning rates of
// every step, the gradients of the first, the tensors after the first and the last.
#include <gtest/gtest.h>

#include <filesystem>

#include "nn/golden_nn.h"
#include "peft/nn/trainer.h"
#include "support/train_expectation.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;

train::Row row_of(const Json& batch, std::size_t row) {
  train::Row result;
  result.ids = batch["input_ids"][row].get<std::vector<std::int32_t>>();
  result.labels = batch["labels"][row].get<std::vector<std::int32_t>>();
  result.mask = batch["attention_mask"][row].get<std::vector<std::uint8_t>>();
  return result;
}

class Training : public ::testing::TestWithParam<std::string> {
 protected:
  Training() : json_(case_json("train", GetParam())), folder_(golden_root() / "train" / GetParam()) {
    for (const Json& batch : json_["batches"]) {
      for (std::size_t row = 0; row < batch["input_ids"].size(); ++row) data_.rows.push_back(row_of(batch, row));
    }
    const Json& t = json_["train"];
    options_.per_device_train_batch_size = 2, options_.shuffle = false;
    options_.gradient_accumulation_steps = t["accumulate"], options_.max_steps = t["steps"];
    options_.learning_rate = t["lr"], options_.weight_decay = t["weight_decay"], options_.adam_epsilon = t["eps"];
    options_.adam_beta1 = t["betas"][0], options_.adam_beta2 = t["betas"][1];
    options_.max_grad_norm = t["grad_clip_norm"];
    options_.warmup_steps = t["warmup_steps"].get<double>();
    options_.lr_scheduler_type = *train::schedule_named(t["schedule"].get<std::string>());
    if (t.value("accumulate_by", "tokens") == "mean") options_.loss_average = train::LossAverage::micro_batch;
    options_.router_aux_loss_coef = t.value("output_router_logits", false) ? 0.02 : 0;
  }

  std::unique_ptr<PeftModel> model() const {
    AdapterModelOptions options;
    options.is_trainable = true;
    return PeftModel::from_pretrained(load_golden(json_["model"]), (folder_ / "adapter").string(), options);
  }
  double tolerance(const char* what) const { return allowed(json_["expect"]["tolerance"][what].get<double>()); }
  // adapter_tensors() as on disk, compared with a file of them.
  void expect_tensors(const PeftModel& model, const fs::path& file, double most) const {
    const Tensors wanted = read_tensors(file);
    const auto got = model.state_dict();
    EXPECT_EQ(got.size(), wanted.size());
    for (const auto& [name, tensor] : got) {
      ASSERT_TRUE(wanted.contains(name)) << name;
      EXPECT_LE(max_difference(tensor, wanted.at(name)), most) << file << " " << name;
    }
  }
  void expect_gradients(const PeftModel& model) const {
    std::size_t compared = 0;
    const Tensors wanted = read_tensors(folder_ / "expected/grads_step0.safetensors");
    for (const AdapterTensor& t : model.adapter_tensors()) {
      if (!t.tensor.requires_grad()) continue;
      ASSERT_TRUE(t.tensor.grad().defined()) << t.key;
      const double share = tolerance("grad_rel_to_tensor_peak") * peak(wanted.at(t.key));
      EXPECT_LE(max_difference(t.in_file_form(t.tensor.grad()), wanted.at(t.key)), share) << t.key;
      ++compared;
    }
    EXPECT_EQ(compared, wanted.size());
  }
  void run_through(bool checkpointing);

  Json json_;
  fs::path folder_;
  train::Dataset data_;
  train::Options options_;
};

void Training::run_through(bool checkpointing) {
  options_.gradient_checkpointing = checkpointing;
  const auto lora = model();
  Trainer trainer(*lora, options_);
  train::Batches batches(data_, options_);
  ASSERT_EQ(static_cast<std::size_t>(batches.total_steps()), json_["expect"]["steps"].size());
  {
    trainer.backward(batches.of_step(0));
    expect_gradients(*lora);
    for (at::Tensor tensor : lora->trainable_parameters()) tensor.mutable_grad().reset();
  }
  std::vector<StepResult> results;
  std::vector<double> rates, grad_norms;
  for (std::int64_t step = 0; step < batches.total_steps(); ++step) {
    rates.push_back(train::learning_rate(options_, step, batches.total_steps()));
    results.push_back(trainer.step(batches.of_step(step), rates.back()));
    grad_norms.push_back(results.back().grad_norm);
    const fs::path after = folder_ / "expected/after_step0.safetensors";
    if (step == 0 && fs::exists(after)) expect_tensors(*lora, after, tolerance("final_abs"));
  }
  const test::TrainExpectation expected = test::train_expectation(json_, GetParam(), grad_norms);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const StepResult& result = results[i];
    const Json& wanted = expected.expect["steps"][i];
    EXPECT_NEAR(rates[i], wanted["lr"].get<double>(), 1e-15) << i;
    EXPECT_NEAR(result.loss, wanted["loss"].get<double>(), tolerance("loss")) << i;
    EXPECT_NEAR(result.grad_norm, wanted["grad_norm"].get<double>(), tolerance("grad_norm")) << i;
    const auto micro = wanted["micro_losses"].get<std::vector<double>>();
    ASSERT_EQ(result.micro_losses.size(), micro.size());
    for (std::size_t m = 0; m < micro.size(); ++m)
      EXPECT_NEAR(result.micro_losses[m], micro[m], tolerance("loss")) << i << " " << m;
    EXPECT_EQ(result.aux_loss.has_value(), wanted.contains("aux_loss"));
    if (result.aux_loss) {
      EXPECT_NEAR(*result.aux_loss, wanted["aux_loss"].get<double>(), 1e-5) << i;
    }
  }
  expect_tensors(*lora, expected.final_tensors, allowed(expected.expect["tolerance"]["final_abs"].get<double>()));
  const at::NoGradGuard no_gradients;
  const Json& batch = json_["batches"][0];
  const bool with_aux = options_.router_aux_loss_coef > 0;
  const ForwardOutput output = lora->forward({.ids = ids_tensor(batch["input_ids"]),
                                              .mask = ids_tensor(batch["attention_mask"]),
                                              .want_aux_loss = with_aux,
                                              .labels = ids_tensor(batch["labels"])});
  const double after = output.loss.item<double>() + (with_aux ? 0.02 * output.aux_loss.item<double>() : 0);
  EXPECT_NEAR(after, expected.expect["loss_after_last_step_on_batch_0"].get<double>(), tolerance("loss_after"));
}

TEST_P(Training, IsThatOfPeft) { run_through(false); }
TEST_P(Training, IsThatOfPeftWithGradientCheckpointing) { run_through(true); }

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Golden, Training, ::testing::ValuesIn(cases("train")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Training);

}  // namespace
}  // namespace peft::nn::testing
