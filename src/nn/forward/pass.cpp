#include "nn/forward/pass.h"

#include "nn/kernels/cpu.h"

namespace peft::nn {

bool plain_floats(const Tensor& tensor) {
  return !at::GradMode::is_enabled() && tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat;
}

void Pass::record(const char* name, const Tensor& value) const {
  if (recording()) (*context.recorder)("layers." + std::to_string(layer) + "." + name, value);
}

void Pass::record_top(const char* name, const Tensor& value) const {
  if (recording()) (*context.recorder)(name, value);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, Norms kind) {
  const float offset = kind == Norms::zero_centred ? 1.0F : 0.0F;
  if (plain_floats(x) && weight.scalar_type() == at::kFloat) {
    const Tensor rows = x.contiguous();
    Tensor out = at::empty_like(rows);
    const std::int64_t cols = x.size(-1);
    kernels::rms_norm(rows.const_data_ptr<float>(), cols, weight.const_data_ptr<float>(), offset, eps, x.numel() / cols,
                      cols, out.mutable_data_ptr<float>());
    return out;
  }
  const bool wide = x.scalar_type() == at::kDouble;
  const Tensor value = wide ? x : x.to(at::kFloat);
  const Tensor scaled = value * at::rsqrt(value.square().mean({-1}, true) + eps);
  switch (kind) {
    case Norms::plain:
      return weight * scaled.to(x.scalar_type());
    case Norms::zero_centred:
      return (scaled * (weight.to(scaled.scalar_type()) + 1)).to(x.scalar_type());
    case Norms::fp32_weight:
      return (weight.to(scaled.scalar_type()) * scaled).to(x.scalar_type());
  }
  return {};
}

Tensor activate(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return at::silu(x);
    case Activation::gelu:
      return at::gelu(x, "none");
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::relu:
      return at::relu(x);
  }
  return {};
}

Tensor gated(const Tensor& gate, const Tensor& up, Activation activation) {
  Tensor y = activate(gate, activation);
  return at::GradMode::is_enabled() ? y * up : y.mul_(up);
}

Tensor run_mlp(const Pass& pass, const Mlp& mlp, const Tensor& x) {
  const Tensor gate = mlp.gate->forward(x, pass.context), up = mlp.up->forward(x, pass.context);
  return mlp.down->forward(gated(gate, up, pass.model.config.activation), pass.context);
}

}  // namespace peft::nn
