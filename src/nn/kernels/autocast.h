// torch.autocast for this library: matrix products in bfloat16, sums and norms in the dtype of their input.
//
//   {
//     const Autocast autocast(model.device());
//     loss = model.forward(input).loss;
//   }
//   loss.backward();
//
// Calls of libtorch are cast by libtorch itself. Products that are written out here (experts) ask as_autocast(), and
// those of LoRA factors stay in float32.
#pragma once

#include <ATen/core/Tensor.h>

namespace peft::nn {

// Switches autocast on for a device while it lives, in this thread; does nothing where `on` is false. Needs libtorch
// 2.4; throws USAGE with an older one. A backward pass runs outside of it, as with torch.autocast.
class Autocast {
 public:
  explicit Autocast(at::Device device, bool on = true);
  ~Autocast();
  Autocast(const Autocast&) = delete;

 private:
  at::Device device_;
  bool changed_ = false;
};

bool is_autocast_on(at::Device device);

// The tensor as autocast hands it to a matrix product: float32 becomes bfloat16 where autocast is on.
at::Tensor as_autocast(const at::Tensor& tensor);

}  // namespace peft::nn
