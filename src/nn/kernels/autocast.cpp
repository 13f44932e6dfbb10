#include "nn/kernels/autocast.h"

#include <ATen/autocast_mode.h>
#include <torch/version.h>

#include "peft/error.h"

namespace peft::nn {

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)

bool is_autocast_on(at::Device device) { return at::autocast::is_autocast_enabled(device.type()); }

Autocast::Autocast(at::Device device, bool on) : device_(device), changed_(on && !is_autocast_on(device)) {
  if (!changed_) return;
  at::autocast::set_autocast_enabled(device.type(), true);
  at::autocast::set_autocast_dtype(device.type(), at::kBFloat16);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (!changed_) return;
  // The copies of weights that were cast are only good until the next step of the optimiser.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_.type(), false);
}

at::Tensor as_autocast(const at::Tensor& tensor) {
  if (tensor.scalar_type() != at::kFloat || !is_autocast_on(tensor.device())) return tensor;
  return tensor.to(at::autocast::get_autocast_dtype(tensor.device().type()));
}

#else

bool is_autocast_on(at::Device) { return false; }

Autocast::Autocast(at::Device device, bool on) : device_(device) {
  if (!on) return;
  throw Error(ErrorCode::USAGE, {.tensor = "bf16",
                                 .problem = "autocast needs a newer libtorch",
                                 .expected = "libtorch 2.4 or newer",
                                 .got = TORCH_VERSION});
}

Autocast::~Autocast() = default;

at::Tensor as_autocast(const at::Tensor& tensor) { return tensor; }

#endif

}  // namespace peft::nn
