// What processes that train together send each other in a step: numbers of a StepResult, and gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "peft/nn/process_group.h"
#include "peft/nn/trainer.h"

namespace peft::nn {

// A part of a step, or all of it.
struct StepMessage {
  StepResult result;
  bool should_stop = false;
  std::vector<at::Tensor> gradients;  // in the order of the trained tensors; undefined where there is none
};

void add(train::ExpertTokens& sum, const train::ExpertTokens& part);
// Adds a micro batch's numbers to those of the micro batches before it.
void add(StepResult& sum, const StepResult& part);
// The same of a message: sums the gradients one after the other, as autograd does.
void add(StepMessage& sum, StepMessage part);

ProcessGroup::Bytes to_bytes(const StepMessage& message);
// `like`: tensors with the gradients' shapes, dtypes and devices. Throws NET_PEER for bytes of another shape.
StepMessage message_of(const ProcessGroup::Bytes& bytes, const std::vector<at::Tensor>& like);

}  // namespace peft::nn
