// Gradient checkpointing: a part of the forward pass that keeps its input alone and runs once more in the backward
// pass.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <vector>

namespace peft::nn {

using Part = std::function<std::vector<at::Tensor>(const at::Tensor& x)>;

// part(x), without keeping what its gradient needs. The part runs with the same code both times, so its values and
// gradients are, bit for bit, those without checkpointing. Gradients of all other tensors that the part uses go to
// their .grad. `random`: the part draws random numbers from the device's default generator; it gets the same ones
// again.
std::vector<at::Tensor> recomputed(const at::Tensor& x, bool random, Part part);

}  // namespace peft::nn
