// Fine-tunes LoRA on the attention and the experts of a model, from rows of token ids.
//
//   example_train MODEL_FOLDER ROWS.jsonl OUT_FOLDER
//
// A row is {"input_ids": [...], "labels"?: [...]}. peft train does the same, and more, from the command line.
#include <peft/error.h>
#include <peft/nn/model.h>
#include <peft/nn/peft_model.h>
#include <peft/nn/trainer.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 4) return std::fputs("usage: example_train MODEL_FOLDER ROWS.jsonl OUT_FOLDER\n", stderr), 2;
  const auto base = peft::nn::load_model(argv[1]);
  peft::nn::LoraConfig config;
  config.r = 8, config.lora_alpha = {16};
  config.target_modules = std::vector<std::string>{"q_proj", "v_proj"};
  config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  const auto model = peft::nn::get_peft_model(base, config);
  model->print_trainable_parameters();

  const auto data = peft::train::read_dataset(argv[2], {.vocabulary = base->vocab_size(), .max_length = 1024});
  peft::train::Options options;
  options.per_device_train_batch_size = 4;
  options.learning_rate = 2e-4;
  options.max_steps = 50;
  peft::nn::Trainer trainer(*model, options);

  // The whole run: schedule, logging, checkpoints, and the adapter at the end.
  peft::nn::TrainRun run{.out = argv[3]};
  run.callbacks.on_log = [](const peft::train::Metrics& m) {
    std::printf("step %lld  loss %.4f  learning rate %.3g\n", static_cast<long long>(m.step), m.loss, m.learning_rate);
  };
  if (const std::string newest = peft::nn::newest_checkpoint(argv[3]); !newest.empty())
    trainer.load_checkpoint(newest, data);
  trainer.run(data, run);
  std::printf("the adapter is in %s\n", argv[3]);
} catch (const peft::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
