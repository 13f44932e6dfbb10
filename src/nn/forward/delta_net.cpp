#include "nn/forward/delta_net.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace peft::nn {
namespace {

constexpr std::int64_t kChunk = 64;

// All [sequences, heads, tokens, features]; decay (in log space) and strength [sequences, heads, tokens].
struct Rule {
  Tensor q, k, v, decay, strength;
};

Tensor unit(const Tensor& x) { return x * at::rsqrt(x.square().sum({-1}, true) + 1e-6); }

// One token: state [sequences, heads, key dim, value dim] becomes the next one.
Tensor step(const Rule& rule, Tensor& state) {
  const Tensor k = rule.k.transpose(2, 3), q = rule.q;
  state = state * rule.decay.exp().unsqueeze(-1);
  const Tensor held = at::matmul(rule.k, state);
  state = state + at::matmul(k, (rule.v - held) * rule.strength.unsqueeze(-1));
  return at::matmul(q, state);
}

Tensor padded(const Tensor& x, std::int64_t extra, std::int64_t after) {
  if (extra == 0) return x;
  std::vector<std::int64_t> pads(static_cast<std::size_t>(2 * after), 0);
  pads.push_back(0), pads.push_back(extra);
  return at::constant_pad_nd(x, pads);
}

// Many tokens. Inside a chunk the updates are one triangular system; between chunks the state goes on.
Tensor chunked(const Rule& rule, Tensor& state) {
  const std::int64_t sequences = rule.q.size(0), heads = rule.q.size(1), tokens = rule.q.size(2);
  const std::int64_t chunk = std::min(kChunk, tokens), chunks = (tokens + chunk - 1) / chunk,
                     extra = chunks * chunk - tokens;
  const auto cut = [&](const Tensor& x) {
    return padded(x, extra, 1).reshape({sequences, heads, chunks, chunk, x.size(3)});
  };
  const Tensor strength = rule.strength.unsqueeze(-1);
  const Tensor q = cut(rule.q), k = cut(rule.k), v = cut(rule.v * strength), kb = cut(rule.k * strength);
  const Tensor sum = padded(rule.decay, extra, 0).reshape({sequences, heads, chunks, chunk}).cumsum(3);

  const Tensor later = at::ones({chunk, chunk}, q.options().dtype(at::kBool)).triu(1);
  const double none = -std::numeric_limits<double>::infinity();
  const Tensor between = (sum.unsqueeze(4) - sum.unsqueeze(3)).masked_fill(later, none).exp();
  const Tensor system = at::matmul(kb, k.transpose(3, 4)) * between;
  const Tensor inside = at::matmul(q, k.transpose(3, 4)) * between;
  const Tensor values = at::linalg_solve_triangular(system, v, false, true, true);
  const Tensor reads = at::linalg_solve_triangular(system, kb * sum.exp().unsqueeze(-1), false, true, true);
  const Tensor q_decayed = q * sum.exp().unsqueeze(-1);
  const Tensor last = sum.narrow(3, chunk - 1, 1);
  const Tensor k_decayed = (k * (last - sum).exp().unsqueeze(-1)).transpose(3, 4);
  const Tensor kept = last.exp().unsqueeze(-1);

  std::vector<Tensor> out;
  for (std::int64_t i = 0; i < chunks; ++i) {
    const Tensor fresh = values.select(2, i) - at::matmul(reads.select(2, i), state);
    out.push_back(at::matmul(q_decayed.select(2, i), state) + at::matmul(inside.select(2, i), fresh));
    state = state * kept.select(2, i) + at::matmul(k_decayed.select(2, i), fresh);
  }
  return at::cat(out, 2).narrow(2, 0, tokens);
}

// Causal convolution over the last inputs, one filter for each channel; x [sequences, channels, tokens].
Tensor convolve(const Tensor& x, const Tensor& weight, Tensor* remembered, Activation activation) {
  const std::int64_t before = weight.size(2) - 1;
  Tensor state = remembered != nullptr && remembered->defined()
                     ? *remembered
                     : at::zeros({x.size(0), x.size(1), before}, x.options());
  const Tensor all = at::cat({state, x}, 2);
  if (remembered != nullptr) *remembered = all.narrow(2, all.size(2) - before, before).contiguous();
  if (x.size(2) == 1) return activate((all * weight.squeeze(1)).sum(2, true), activation);
  return activate(at::conv1d(all, weight, {}, at::IntArrayRef{1}, at::IntArrayRef{0}, at::IntArrayRef{1}, x.size(1)),
                  activation);
}

Tensor heads_first(const Tensor& x, std::int64_t first, std::int64_t heads, std::int64_t dim, at::ScalarType dtype) {
  const Tensor part = x.narrow(2, first, heads * dim).reshape({x.size(0), x.size(1), heads, dim});
  return part.transpose(1, 2).to(dtype);
}

}  // namespace

Tensor run_delta_net(Pass& pass, const Layer& layer, const Tensor& input) {
  const ModelConfig& config = pass.model.config;
  const LinearAttentionConfig& l = config.linear;
  const DeltaNet& d = *layer.delta;
  const std::int64_t B = pass.sequences, T = pass.tokens;
  const at::ScalarType wide = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor x = input;
  if (pass.padding.defined()) {  // padding leaves no trace in the states
    x = x * pass.padding.narrow(1, pass.past, T).reshape({B * T, 1}).to(x.scalar_type());
  }
  LayerCache* cache = pass.cache == nullptr ? nullptr : &pass.cache->layers[static_cast<std::size_t>(pass.layer)];
  const Tensor qkv = d.qkv->forward(x, pass.context).view({B, T, l.conv_size()});
  const Tensor z = d.z->forward(x, pass.context);
  const Tensor b = d.b->forward(x, pass.context).view({B, T, l.value_heads});
  const Tensor a = d.a->forward(x, pass.context).view({B, T, l.value_heads});
  const Tensor conv =
      convolve(qkv.transpose(1, 2), d.conv->first, cache == nullptr ? nullptr : &cache->conv, config.activation);
  const Tensor mixed = conv.transpose(1, 2);
  const Tensor strength = b.sigmoid();
  const Tensor decay = d.self->second.to(wide).exp().neg() * at::softplus(a.to(wide) + d.self->first);
  pass.record("lin.qkv", qkv), pass.record("lin.z", z.view({B, T, l.value_heads, l.value_dim}));
  pass.record("lin.a", a), pass.record("lin.b", b), pass.record("lin.conv_out", conv);
  pass.record("lin.g", decay), pass.record("lin.beta", strength);

  const std::int64_t repeat = l.value_heads / l.key_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(l.key_dim));
  Tensor q = unit(heads_first(mixed, 0, l.key_heads, l.key_dim, wide)) * scale;
  Tensor k = unit(heads_first(mixed, l.key_size(), l.key_heads, l.key_dim, wide));
  if (repeat > 1) q = q.repeat_interleave(repeat, 1), k = k.repeat_interleave(repeat, 1);
  const Rule rule{q, k, heads_first(mixed, 2 * l.key_size(), l.value_heads, l.value_dim, wide), decay.transpose(1, 2),
                  strength.transpose(1, 2).to(wide)};
  Tensor state = cache != nullptr && cache->state.defined()
                     ? cache->state
                     : at::zeros({B, l.value_heads, l.key_dim, l.value_dim}, input.options().dtype(wide));
  Tensor core = (T == 1 ? step(rule, state) : chunked(rule, state)).transpose(1, 2).to(input.scalar_type());
  if (cache != nullptr) cache->state = state;
  pass.record("lin.core_out", core);

  core = core.reshape({B * T * l.value_heads, l.value_dim});
  const Tensor normed = rms_norm(core, d.norm->first, config.eps, Norms::plain);
  const Tensor gate = at::silu(z.reshape({B * T * l.value_heads, l.value_dim}).to(wide));
  const Tensor out = (normed * gate).to(input.scalar_type()).view({B * T, l.value_size()});
  pass.record("lin.norm_out", out);
  return d.out->forward(out, pass.context);
}

}  // namespace peft::nn
