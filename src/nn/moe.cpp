// Routers and experts.
#include "nn/impl.h"

namespace peft::nn {
namespace {

struct Routing {
  Tensor weights, indices;   // [rows, k]
};

Routing route(Pass& pass, const Moe& moe, const Tensor& x) {
  const MoeConfig& config = pass.model.config.moe;
  const MoeParts& parts = *pass.model.config.family->moe;
  const Tensor logits = moe.router->forward(x, pass.context);
  if (pass.want_router_logits) pass.router_logits.push_back(logits);
  const at::ScalarType dtype = logits.scalar_type(), wide = dtype == at::kDouble ? dtype : at::kFloat;
  Routing r;
  if (parts.softmax_after_topk) {
    const auto [values, indices] = logits.topk(config.top_k, -1);
    r = {at::softmax(values, 1, dtype), indices};
  } else {
    auto [values, indices] = at::softmax(logits, -1, wide).topk(config.top_k, -1);
    if (config.renormalise) values = values / values.sum({-1}, true);
    r = {values.to(dtype), indices};
  }
  pass.record("router.logits", logits), pass.record("router.weights", r.weights);
  pass.record("router.indices", r.indices);
  return r;
}

Tensor gate_of(const Pass& pass, const Experts& experts, const Tensor& gate_up) {
  const ModelConfig& config = pass.model.config;
  const std::int64_t half = gate_up.size(1) / 2;
  Tensor gate, up;
  if (experts.interleaved) {
    const Tensor pairs = gate_up.view({gate_up.size(0), half, 2});
    gate = pairs.select(2, 0), up = pairs.select(2, 1);
  } else {
    gate = gate_up.narrow(1, 0, half), up = gate_up.narrow(1, half, half);
  }
  if (!config.family->moe->clamped) return gated(gate, up, config.activation);
  const double limit = config.moe.swiglu_limit;
  gate = gate.clamp_max(limit), up = up.clamp(-limit, limit);
  return (up + 1) * (gate * at::sigmoid(gate * config.moe.swiglu_alpha));
}

// The chosen experts' outputs, weighted and summed for each token.
Tensor combine(const Tensor& y, const Routing& routing, const ExpertGroups& groups) {
  const Tensor weights = routing.weights.to(y.scalar_type());
  if (groups.tokens == 1) return at::mm(weights.view({-1}).index_select(0, groups.choice).unsqueeze(0), y);
  const Tensor rows = y.index_select(0, groups.inverse).view({groups.tokens, groups.top_k, y.size(1)});
  return at::bmm(weights.unsqueeze(1), rows).squeeze(1);
}

}  // namespace

Tensor run_moe(Pass& pass, const Moe& moe, const Tensor& input) {
  Tensor x = input;
  const double jitter = pass.model.config.moe.jitter;
  if (pass.context.training && jitter > 0) x = x * at::empty_like(x).uniform_(1 - jitter, 1 + jitter);
  const Routing routing = route(pass, moe, x);
  const Experts& experts = *moe.experts;
  const ExpertGroups groups = group_by_expert(routing.indices, experts.num_experts());
  const Tensor sorted = groups.tokens == 1 ? x.expand({groups.rows(), x.size(1)}) : x.index_select(0, groups.token);
  const Tensor gate_up = experts.project(experts.gate_up, sorted, groups, pass.context);
  const Tensor y = experts.project(experts.down, gate_of(pass, experts, gate_up), groups, pass.context);
  Tensor out = combine(y, routing, groups);
  pass.record("experts_out", out);
  if (!moe.shared) return out;
  const Tensor shared = run_mlp(pass, *moe.shared, x), gate = moe.shared_gate->forward(x, pass.context);
  pass.record("shared_expert_out", shared), pass.record("shared_expert_gate", gate);
  return out + at::sigmoid(gate) * shared;
}

Tensor load_balancing_loss(const Pass& pass) {
  const MoeConfig& config = pass.model.config.moe;
  Tensor counts, probabilities, rows;
  for (const Tensor& logits : pass.router_logits) {
    const Tensor p = at::softmax(logits, -1), chosen = std::get<1>(p.topk(config.top_k, -1));
    Tensor weight = at::ones({logits.size(0)}, logits.options().dtype(at::kFloat));
    if (pass.padding.defined()) weight = pass.padding.narrow(1, pass.past, pass.tokens).reshape({-1}).to(at::kFloat);
    Tensor count = at::zeros({config.experts}, weight.options());
    count.scatter_add_(0, chosen.reshape({-1}), weight.repeat_interleave(config.top_k));
    const Tensor sum = (p.to(at::kFloat) * weight.unsqueeze(1)).sum(0);
    counts = counts.defined() ? counts + count : count;
    probabilities = probabilities.defined() ? probabilities + sum : sum;
    rows = rows.defined() ? rows + weight.sum() : weight.sum();
  }
  return (counts / rows * (probabilities / rows)).sum() * config.experts;
}

}  // namespace peft::nn
