// What a training run is asked for, with the names and defaults of transformers' TrainingArguments and TRL's SFTConfig,
// and the learning rate of each step. Needs no tensors; peft::nn::Trainer (peft/nn/trainer.h) carries it out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace peft::train {

// lr_scheduler_type
enum class Schedule : std::uint8_t { constant, constant_with_warmup, linear, cosine, cosine_with_min_lr };
std::string_view name_of(Schedule schedule);
std::vector<std::string> schedule_names();
std::optional<Schedule> schedule_named(std::string_view name);

// What the loss of an accumulated batch is divided by: all its tokens, as transformers does since 4.46; or the tokens
// of each micro batch, and then by the number of those.
enum class LossAverage : std::uint8_t { tokens, micro_batch };

struct Options {
  std::int64_t per_device_train_batch_size = 8, per_device_eval_batch_size = 8, gradient_accumulation_steps = 1;
  std::int64_t world_size = 1;  // processes: a step has gradient_accumulation_steps micro batches of each
  double num_train_epochs = 3;
  std::int64_t max_steps = 0;         // what the schedule counts to; 0: from num_train_epochs
  std::int64_t stop_after_steps = 0;  // saves a checkpoint there and ends; the schedule is not shortened. 0: off

  double learning_rate = 2e-5;
  Schedule lr_scheduler_type = Schedule::linear;
  double warmup_steps = 0;                      // below 1: a share of all steps
  std::optional<double> min_lr, min_lr_rate{};  // of cosine_with_min_lr: one of the two
  double weight_decay = 0, adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8;
  double max_grad_norm = 1;                                    // 0: gradients are not clipped
  double loraplus_lr_ratio = 0, loraplus_lr_embedding = 1e-6;  // LoRA+; ratio 0: off

  LossAverage loss_average = LossAverage::tokens;
  // Of the routers' load balancing loss. Not given: that of config.json where output_router_logits is true there; 0:
  // off.
  std::optional<double> router_aux_loss_coef{};
  bool gradient_checkpointing = true;
  bool bf16 = false;  // autocast: matrix products of float32 tensors in bfloat16; the weights keep their dtype

  std::int64_t max_length = 1024;  // longer rows are cut; 0: never
  bool packing = false;            // several rows in one, which do not see each other
  bool shuffle = true;             // a function of seed and epoch alone
  std::uint64_t seed = 42;         // of the order and of dropout

  std::int64_t logging_steps = 10, save_steps = 500, save_total_limit = 0, eval_steps = 0;  // 0: never, no limit
  bool load_best_model_at_end = false;
};

// Throws USAGE with the name and value of an option that cannot be.
void check(const Options& options);

// The steps of warming up, out of `total`.
std::int64_t warmup_steps(const Options& options, std::int64_t total);
// The learning rate of step 0, 1, ... of `total`.
double learning_rate(const Options& options, std::int64_t step, std::int64_t total);

// What a run that goes on must have in common with the run it goes on with: names and values, in a fixed order.
std::vector<std::pair<std::string, std::string>> fingerprint(const Options& options);

}  // namespace peft::train
