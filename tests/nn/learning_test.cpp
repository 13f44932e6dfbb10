// A small model learns a task from end to end: a random mixture of experts, LoRA on all of it, rows from a file, the
// adapter saved, loaded again and asked.
#include <gtest/gtest.h>

#include "nn/golden_nn.h"
#include "nn/small_models.h"
#include "peft/nn/trainer.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;
using peft::testing::write_file;

constexpr std::int64_t kTokens = 11, kStep = 3;

// The grammar: each token is followed by the one three further on, in a circle of eleven.
std::vector<std::int64_t> sentence(std::int64_t first, std::size_t length) {
  std::vector<std::int64_t> tokens;
  for (std::size_t i = 0; i < length; ++i) tokens.push_back((first + kStep * static_cast<std::int64_t>(i)) % kTokens);
  return tokens;
}

// How many of the eleven sentences the model completes without a mistake.
int completed(const std::function<std::vector<std::vector<std::int64_t>>(const at::Tensor&)>& generate) {
  int right = 0;
  for (std::int64_t first = 0; first < kTokens; ++first) {
    const auto whole = sentence(first, 8);
    const std::vector<std::int64_t> begun(whole.begin(), whole.begin() + 2), rest(whole.begin() + 2, whole.end());
    right += generate(at::tensor(begun, at::kLong).unsqueeze(0).to(device())).front() == rest ? 1 : 0;
  }
  return right;
}

TEST(Learning, AGrammarIsLearntSavedAndSpoken) {
  const TemporaryFolder folder;
  std::string rows;
  for (std::int64_t first = 0; first < kTokens; ++first)
    rows += Json{{"input_ids", sentence(first, 5 + static_cast<std::size_t>(first) % 5)}}.dump() + "\n";
  write_file(folder / "rows.jsonl", rows);
  const auto base = made(folder, qwen3_moe({{"vocab_size", 13}, {"num_experts", 5}}), {.device = device()});
  const GenerateOptions six{.max_new_tokens = 6};
  const auto data = train::read_dataset(folder / "rows.jsonl", {.vocabulary = base->vocab_size()});
  {
    LoraConfig config;
    config.r = 8, config.lora_alpha = {16, true};
    config.target_modules = std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj"};
    config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
    config.modules_to_save = {"lm_head"};
    const auto lora = get_peft_model(base, config);
    EXPECT_LE(completed([&](const at::Tensor& ids) { return lora->generate(ids, {}, six); }), 2);
    train::Options options;
    options.per_device_train_batch_size = 6, options.max_steps = 150, options.learning_rate = 2e-2;
    options.lr_scheduler_type = train::Schedule::cosine, options.warmup_steps = 10, options.logging_steps = 25;
    options.save_steps = 0, options.packing = true;
    Trainer trainer(*lora, options);
    const double before = trainer.evaluate(data).loss;
    EXPECT_GT(before, 2);  // near log 13
    std::vector<double> losses;
    TrainRun run{.out = folder / "out"};
    run.callbacks.on_log = [&](const train::Metrics& m) { losses.push_back(m.loss); };
    EXPECT_EQ(trainer.run(train::packed(data, 24), run), TrainEnd::finished);
    EXPECT_EQ(losses.size(), 6U);
    EXPECT_LT(losses.back(), losses.front());
    EXPECT_LT(trainer.evaluate(data).loss, 0.05);
    EXPECT_GT(trainer.evaluate(data).mean_token_accuracy, 0.99);
  }
  const auto loaded = PeftModel::from_pretrained(base, folder / "out");
  EXPECT_EQ(completed([&](const at::Tensor& ids) { return loaded->generate(ids, {}, six); }), kTokens);
}

}  // namespace
}  // namespace peft::nn::testing
