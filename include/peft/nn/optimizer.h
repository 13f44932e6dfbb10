// AdamW over the tensors of an adapter, and clipping of their gradients: for programs with a training loop of their
// own. Needs the library peft::nn.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/nn/peft_model.h"

namespace peft::nn {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0;  // decoupled, and of every tensor: biases and norms too
};

// torch.optim.AdamW, with its bias corrections. Its state is fp32 (fp64 for tensors of that dtype). A tensor without
// gradient stays as it is; one whose gradient is zero is decayed.
class AdamW {
 public:
  // Of these tensors those that require gradients. `rate_factors`: what the learning rate is multiplied by, one for
  // each of `tensors`; empty: 1.
  explicit AdamW(const std::vector<AdapterTensor>& tensors, const AdamWOptions& options = {},
                 const std::vector<double>& rate_factors = {});

  void step(double learning_rate);
  void zero_grad();

  // To be saved: "exp_avg.KEY", "exp_avg_sq.KEY", "step".
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  // Throws RS_JOURNAL for a state of other tensors.
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& state);

 private:
  struct Slot {
    std::string key;
    at::Tensor tensor, exp_avg, exp_avg_sq;
    double rate_factor = 1;
    std::int64_t steps = 0;
  };
  void update(Slot& slot, double learning_rate) const;

  AdamWOptions options_;
  std::vector<Slot> slots_;
};

// What LoRA+ multiplies the learning rate by: `ratio` for lora_B and vectors, embedding_rate / learning_rate for
// embeddings, 1 for all others. As in PEFT's create_loraplus_optimizer.
std::vector<double> loraplus_factors(const std::vector<AdapterTensor>& tensors, double ratio, double embedding_rate,
                                     double learning_rate);

// torch.nn.utils.clip_grad_norm_: the norm of all gradients together, before they are scaled down to at most
// `max_norm`. 0: they are not.
double clip_gradients(const std::vector<at::Tensor>& tensors, double max_norm);

}  // namespace peft::nn
