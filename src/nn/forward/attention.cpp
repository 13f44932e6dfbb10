#include "nn/forward/attention.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "nn/kernels/autocast.h"
#include "nn/kernels/cpu.h"

namespace peft::nn {
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

// x [sequences, tokens, heads, head dim]
Tensor rotate(const Pass& pass, const Tensor& x) {
  if (plain_floats(x)) return rotate_floats(pass, x);
  const std::int64_t half = pass.cos.size(-1), dim = x.size(3);
  // Angles have the dtype of the hidden values, which under autocast is wider than that of x.
  const at::ScalarType dtype = is_autocast_on(x.device()) ? pass.model.dtype : x.scalar_type();
  const Tensor cos = pass.cos.to(dtype), sin = pass.sin.to(dtype);
  const Tensor a = x.narrow(3, 0, half), b = x.narrow(3, half, half);
  std::vector<Tensor> pieces{a * cos - b * sin, b * cos + a * sin};
  if (2 * half != dim) pieces.push_back(x.narrow(3, 2 * half, dim - 2 * half));
  return at::cat(pieces, 3);
}

// Which keys a block of queries may see; positions in the cache count from 0.
struct Sight {
  std::int64_t first = 0, count = 0;  // queries of this pass
  std::int64_t begin = 0, end = 0;    // keys
};

// What is added to scores, [1 or sequences, 1, 1, queries, keys]; undefined: nothing is hidden.
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
  // Not minus infinity: a row of padding, which sees no key, would become NaN.
  const double lowest = pass.model.dtype == at::kHalf ? -65504.0 : -1e38;
  const Tensor mask = at::zeros(seen.sizes(), options.dtype(pass.model.dtype)).masked_fill_(seen.logical_not(), lowest);
  if (whole) pass.masks[window] = mask;
  return mask;
}

// Scores of this many elements are held at once; more queries are taken block by block. On a CPU 1 MiB, which stays in
// the cache; the earlier queries' blocks also leave out the later keys.
constexpr std::int64_t kScoresOfCpu = std::int64_t{1} << 18, kScores = std::int64_t{1} << 23;

// Appends to a buffer that doubles when it is full; returns all tokens so far.
Tensor append(Tensor& buffer, const Tensor& fresh, std::int64_t length) {
  const std::int64_t tokens = fresh.size(2), needed = length + tokens;
  if (!buffer.defined() || buffer.size(2) < needed) {
    std::vector<std::int64_t> shape = fresh.sizes().vec();
    shape[2] = std::max<std::int64_t>(needed, std::max<std::int64_t>(64, 2 * length));
    Tensor larger = at::empty(shape, fresh.options());
    if (length > 0) larger.narrow(2, 0, length).copy_(buffer.narrow(2, 0, length));
    buffer = larger;
  }
  buffer.narrow(2, length, tokens).copy_(fresh);
  return buffer.narrow(2, 0, needed);
}

// Softmax over keys. A sink is one more column, which takes its share and has no value.
Tensor probabilities(const Tensor& scores, const Plain* sinks, std::int64_t groups) {
  const at::ScalarType dtype = scores.scalar_type(), wide = dtype == at::kDouble ? dtype : at::kFloat;
  if (sinks == nullptr) return at::softmax(scores, -1, wide).to(dtype);
  const std::int64_t kv = scores.size(1);
  Tensor column = sinks->first.to(dtype).view({1, kv, groups, 1, 1});
  column = column.expand({scores.size(0), kv, groups, scores.size(3), 1});
  const Tensor all = at::softmax(at::cat({scores, column}, -1), -1, wide).to(dtype);
  return all.narrow(-1, 0, scores.size(-1));
}

struct Block {
  std::int64_t first = 0, count = 0;  // queries
};

class Mixer {
 public:
  Mixer(Pass& pass, const Layer& layer, const Tensor& q, const Tensor& k, const Tensor& v)
      : pass_(pass), layer_(layer), q_(q), k_(k), v_(v), kv_heads_(k.size(1)), groups_(q.size(1) / k.size(1)) {}

  // [sequences, heads, tokens, head dim]
  Tensor run() {
    if (!pass_.inference && !pass_.recording() && layer_.attention->sinks == nullptr) return fused();
    const std::int64_t tokens = pass_.tokens, width = k_.size(2) * q_.size(0) * q_.size(1);
    const std::int64_t scores = q_.is_cpu() ? kScoresOfCpu : kScores;
    const std::int64_t step =
        pass_.recording() ? tokens
                          : std::clamp<std::int64_t>(scores / width, std::min<std::int64_t>(16, tokens), tokens);
    if (step >= tokens) return block({0, tokens});
    std::vector<Tensor> parts;
    for (std::int64_t first = 0; first < tokens; first += step) {
      parts.push_back(block({first, std::min(step, tokens - first)}));
    }
    return at::cat(parts, 2);
  }

 private:
  // With gradients: libtorch's kernel, which computes the probabilities again in the backward pass.
  Tensor fused() {
    const std::int64_t tokens = pass_.tokens, window = layer_.kind.window;
    const bool causal = !pass_.padding.defined() && (window == 0 || window >= tokens);
    std::optional<Tensor> mask;
    if (!causal) mask = mask_of(pass_, window, {0, tokens, 0, tokens}).squeeze(2);
    // Each head gets its keys: libtorch's kernels for fewer heads of keys are not there on every device.
    const Tensor k = groups_ > 1 ? k_.repeat_interleave(groups_, 1) : k_;
    const Tensor v = groups_ > 1 ? v_.repeat_interleave(groups_, 1) : v_;
    return at::scaled_dot_product_attention(q_, k, v, mask, 0.0, causal);
  }

  Tensor block(const Block& b) {
    const std::int64_t sequences = q_.size(0), dim = q_.size(3), window = layer_.kind.window;
    // Leaves out the keys that no query of the block sees.
    const std::int64_t end = pass_.recording() ? k_.size(2) : pass_.past + b.first + b.count;
    const std::int64_t begin =
        pass_.recording() || window == 0 ? 0 : std::max<std::int64_t>(0, pass_.past + b.first - window + 1);
    const Tensor k = k_.narrow(2, begin, end - begin), v = v_.narrow(2, begin, end - begin);
    const Tensor q = q_.narrow(2, b.first, b.count).reshape({sequences, kv_heads_, groups_ * b.count, dim});
    Tensor scores = at::matmul(q, k.transpose(2, 3));
    scores = scores.view({sequences, kv_heads_, groups_, b.count, end - begin});
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    scores = pass_.inference ? scores.mul_(scale) : scores * scale;
    const Tensor mask = mask_of(pass_, window, {b.first, b.count, begin, end});
    if (mask.defined()) scores = pass_.inference ? scores.add_(mask) : scores + mask;
    const Tensor p = probabilities(scores, layer_.attention->sinks, groups_);
    if (pass_.recording()) pass_.record("attn.probs", p.reshape({sequences, q_.size(1), b.count, end - begin}));
    const Tensor mixed = at::matmul(p.reshape({sequences, kv_heads_, groups_ * b.count, end - begin}), v);
    return mixed.view({sequences, q_.size(1), b.count, dim});
  }

  Pass& pass_;
  const Layer& layer_;
  const Tensor &q_, &k_, &v_;
  std::int64_t kv_heads_, groups_;
};

// ---- Linear attention

constexpr std::int64_t kChunk = 64;

// All [sequences, heads, tokens, features]; decay (in log space) and strength [sequences, heads, tokens].
struct DeltaRule {
  Tensor q, k, v, decay, strength;
};

Tensor unit(const Tensor& x) { return x * at::rsqrt(x.square().sum({-1}, true) + 1e-6); }

// One token: state [sequences, heads, key dim, value dim] becomes the next one.
Tensor delta_step(const DeltaRule& rule, Tensor& state) {
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
Tensor delta_chunked(const DeltaRule& rule, Tensor& state) {
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

// Autocast stays out: errors of bfloat16 products grow along the recurrence until the gradients are of another size.
Tensor run_rule(const DeltaRule& rule, Tensor& state) {
  const c10::impl::ExcludeDispatchKeyGuard exact(c10::autocast_dispatch_keyset);
  return rule.q.size(2) == 1 ? delta_step(rule, state) : delta_chunked(rule, state);
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

Tensor run_attention(Pass& pass, const Layer& layer, const Tensor& x) {
  const ModelConfig& config = pass.model.config;
  const Attention& a = *layer.attention;
  const std::int64_t rows = pass.sequences * pass.tokens, dim = config.head_dim;
  Tensor q = a.q->forward(x, pass.context), gate;
  if (config.family->output_gate) {  // each head's output holds q and gate
    const Tensor both = q.view({rows, config.heads, 2 * dim});
    q = both.narrow(2, 0, dim), gate = both.narrow(2, dim, dim).reshape({rows, config.heads * dim});
  }
  q = q.reshape({pass.sequences, pass.tokens, config.heads, dim});
  Tensor k = a.k->forward(x, pass.context).view({pass.sequences, pass.tokens, config.kv_heads, dim});
  Tensor v = a.v->forward(x, pass.context).view({pass.sequences, pass.tokens, config.kv_heads, dim}).transpose(1, 2);
  if (a.q_norm != nullptr) {
    q = rms_norm(q, a.q_norm->first, config.eps, config.family->norms);
    k = rms_norm(k, a.k_norm->first, config.eps, config.family->norms);
  }
  q = rotate(pass, q).transpose(1, 2), k = rotate(pass, k).transpose(1, 2);
  pass.record("attn.q", q), pass.record("attn.k", k), pass.record("attn.v", v);
  if (pass.cache != nullptr) {
    LayerCache& cache = pass.cache->layers[static_cast<std::size_t>(pass.layer)];
    k = append(cache.keys, k, pass.past), v = append(cache.values, v, pass.past);
  }
  const Tensor mixed = Mixer(pass, layer, q, k, v).run().transpose(1, 2);
  pass.record("attn.context", mixed);
  Tensor out = mixed.reshape({rows, config.heads * dim});
  if (gate.defined()) out = out * at::sigmoid(gate);
  return a.o->forward(out, pass.context);
}

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
  const DeltaRule rule{q, k, heads_first(mixed, 2 * l.key_size(), l.value_heads, l.value_dim, wide),
                       decay.transpose(1, 2), strength.transpose(1, 2).to(wide)};
  Tensor state = cache != nullptr && cache->state.defined()
                     ? cache->state
                     : at::zeros({B, l.value_heads, l.key_dim, l.value_dim}, input.options().dtype(wide));
  Tensor core = run_rule(rule, state).transpose(1, 2).to(input.scalar_type());
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
