// Fine-tuning an adapter: steps, evaluation, checkpoints, and the run as a whole. Needs the library peft::nn.
//
//   auto model = peft::nn::get_peft_model(peft::nn::load_model("Qwen3-30B-A3B"), config);
//   peft::train::Options options{.learning_rate = 2e-4, .max_steps = 500};
//   const auto data = peft::train::read_dataset("train.jsonl", {.vocabulary = model->base()->vocab_size()});
//   peft::nn::Trainer trainer(*model, options);
//   trainer.run(data, {.out = "my-lora"});
//
// A program with a loop of its own needs AdamW (peft/nn/optimizer.h), train::learning_rate() and a model that is given
// labels; step() is one step of this trainer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "peft/nn/peft_model.h"
#include "peft/nn/process_group.h"
#include "peft/train/batches.h"
#include "peft/train/data.h"
#include "peft/train/metrics.h"
#include "peft/train/options.h"

namespace peft::nn {

struct StepResult {
  double loss = 0, grad_norm = 0;          // before the update, before clipping
  std::vector<double> micro_losses{};      // their sum is the loss
  std::int64_t predicted = 0, tokens = 0;  // tokens that are learnt; tokens that are not padding
  double correct = 0, entropy = 0;         // sums over the predicted tokens
  std::optional<double> aux_loss{};        // mean of the micro batches, not multiplied by its coefficient
  train::ExpertTokens expert_tokens{};     // of the forward passes
};

struct TrainCallbacks {
  std::function<void(std::int64_t step, std::int64_t total, const StepResult& result)> on_step{};
  std::function<void(const train::Metrics&)> on_log{};
  std::function<void(const train::Evaluation&)> on_evaluate{};
  std::function<void(const std::string& folder)> on_save{};
  std::function<bool()> should_stop{};  // asked in each step, and answered after it; of any process
};

struct TrainRun {
  std::string out{};                     // checkpoints and the trained adapter; empty: nothing is written
  const train::Dataset* eval = nullptr;  // evaluated every eval_steps, and at the end
  TrainCallbacks callbacks{};
};

enum class TrainEnd : std::uint8_t {
  finished,
  stopped_after_steps,  // Options::stop_after_steps; a checkpoint is there
  stopped,              // should_stop(); a checkpoint is there
};

class Trainer {
 public:
  // Trains the active adapter's tensors that require gradients. The model must outlive the trainer. Throws USAGE where
  // there is nothing to train.
  // `group`: processes that train together. Each is given the same options, adapter and data; gradients are added in
  // the order of the micro batches, so the result is bit for bit that of one process with the micro batches of all.
  // Rank 0 writes.
  Trainer(PeftModel& model, const train::Options& options, std::shared_ptr<ProcessGroup> group = nullptr);
  ~Trainer();
  Trainer(const Trainer&) = delete;

  // Gradients of the batches together, clipped; then the optimiser's step. Of a group, all are given the batches of
  // all. Throws NUM_NONFINITE, naming the step and the tensor, before anything is changed.
  StepResult step(const std::vector<train::MicroBatch>& batches, double learning_rate);
  // As step(), without clipping, the optimiser's step and forgetting the gradients: for programs that do those.
  StepResult backward(const std::vector<train::MicroBatch>& batches);
  train::Evaluation evaluate(const train::Dataset& data);

  // From where the state is to the end. With `out`, the trained adapter is saved there.
  TrainEnd run(const train::Dataset& data, const TrainRun& run);

  // A folder that appears complete or not at all: the adapter, the optimiser, where the run is.
  void save_checkpoint(const std::string& folder, const train::Dataset& data);
  // Throws RS_JOURNAL for a checkpoint of another run: other options, data, or another adapter.
  void load_checkpoint(const std::string& folder, const train::Dataset& data);

  const train::RunState& state() const;
  double router_aux_loss_coef() const;  // what is used; 0: off

 private:
  struct Impl;
  TrainEnd run_to_the_end(const train::Dataset& data, const TrainRun& run);
  std::unique_ptr<Impl> impl_;
};

// The newest complete checkpoint of an output folder; empty: there is none.
std::string newest_checkpoint(const std::string& out);

}  // namespace peft::nn
