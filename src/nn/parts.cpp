// Norms, activations, the dense MLP, rotary positions and masks.
#include "nn/impl.h"
#include "nn/kernels.h"

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

void set_rotary(Pass& pass, const Tensor& positions) {
  const Frequencies& f = pass.model.frequencies;
  const bool wide = pass.model.dtype == at::kDouble;
  const Tensor inverse = at::tensor(f.inverse, at::TensorOptions(at::kFloat)).to(pass.model.device);
  const Tensor angles = (positions.unsqueeze(-1).to(at::kFloat) * inverse).unsqueeze(2);
  pass.cos = angles.cos() * f.scaling, pass.sin = angles.sin() * f.scaling;
  if (wide) pass.cos = pass.cos.to(at::kDouble), pass.sin = pass.sin.to(at::kDouble);
  pass.record_top("rope.cos", pass.cos.squeeze(2));
  pass.record_top("rope.sin", pass.sin.squeeze(2));
}

namespace {

Tensor rotate_floats(const Pass& pass, const Tensor& x) {
  const std::int64_t half = pass.cos.size(-1), heads = x.size(2), dim = x.size(3);
  const Tensor cos = pass.cos.contiguous(), sin = pass.sin.contiguous();
  const Tensor in = x.contiguous();
  Tensor out = 2 * half == dim ? at::empty_like(in) : in.clone();
  const float *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>(), *from = in.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (std::int64_t row = 0; row < pass.sequences * pass.tokens; ++row) {
    const std::int64_t angle = (cos.size(0) == 1 ? row % pass.tokens : row) * half;
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t at = (row * heads + h) * dim;
      kernels::rotate(from + at, c + angle, s + angle, half, to + at);
    }
  }
  return out;
}

}  // namespace

Tensor rotate(const Pass& pass, const Tensor& x) {
  if (plain_floats(x)) return rotate_floats(pass, x);
  const std::int64_t half = pass.cos.size(-1), dim = x.size(3);
  const Tensor cos = pass.cos.to(x.scalar_type()), sin = pass.sin.to(x.scalar_type());
  const Tensor a = x.narrow(3, 0, half), b = x.narrow(3, half, half);
  std::vector<Tensor> pieces{a * cos - b * sin, b * cos + a * sin};
  if (2 * half != dim) pieces.push_back(x.narrow(3, 2 * half, dim - 2 * half));
  return at::cat(pieces, 3);
}

Tensor mask_of(Pass& pass, std::int64_t window, const Sight& sight) {
  const std::int64_t first = pass.past + sight.first,
                     end = first + sight.count;  // queries, counted with what is cached
  const bool windowed = window != 0 && end - sight.begin > window;
  if (sight.count == 1 && !pass.padding.defined() && !windowed) return {};  // sees all of these keys
  const bool whole = sight.count == pass.tokens;
  if (whole && pass.masks.contains(window)) return pass.masks[window];
  const auto options = at::TensorOptions().device(pass.model.device).dtype(at::kLong);
  const Tensor query = at::arange(first, end, options).unsqueeze(1),
               key = at::arange(sight.begin, sight.end, options).unsqueeze(0);
  Tensor seen = key.le(query);
  if (windowed) seen = seen.logical_and(key.gt(query - window));
  const std::int64_t keys = sight.end - sight.begin;
  seen = seen.view({1, 1, 1, sight.count, keys});
  if (pass.padding.defined()) {
    const Tensor real = pass.padding.narrow(1, sight.begin, keys);
    seen = seen.logical_and(real.reshape({pass.sequences, 1, 1, 1, keys}));
  }
  // A low number, not minus infinity: a row that sees nothing (padding) must not become NaN.
  const double lowest = pass.model.dtype == at::kHalf ? -65504.0 : -1e38;
  const Tensor mask = at::zeros(seen.sizes(), options.dtype(pass.model.dtype)).masked_fill_(seen.logical_not(), lowest);
  if (whole) pass.masks[window] = mask;
  return mask;
}

}  // namespace peft::nn
