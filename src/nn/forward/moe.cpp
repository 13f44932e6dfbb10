#include "nn/forward/moe.h"

#include <algorithm>

namespace peft::nn {
namespace {

struct Routing {
  Tensor weights, indices;  // [rows, k]
};

struct Best {
  Tensor values, indices;  // [rows, k]
};

// The k best of each row of scores; or those that an earlier run of this layer chose.
Best best_of(const Pass& pass, const Tensor& scores, std::int64_t k) {
  if (pass.chosen_experts == nullptr) {
    const auto [values, indices] = scores.topk(k, -1);
    return {values, indices};
  }
  Tensor& chosen = *pass.chosen_experts;
  if (!chosen.defined()) chosen = std::get<1>(scores.detach().topk(k, -1));
  return {scores.gather(-1, chosen), chosen};
}

Routing route(Pass& pass, const Moe& moe, const Tensor& x) {
  const MoeConfig& config = pass.model.config.moe;
  const model::RuntimeExperts& parts = *pass.model.config.family->experts;
  const Tensor logits = moe.router->forward(x, pass.context);
  if (pass.want_router_logits) pass.router_logits.push_back(logits);
  const at::ScalarType dtype = logits.scalar_type(), wide = dtype == at::kDouble ? dtype : at::kFloat;
  Routing r;
  if (parts.softmax_of_chosen) {
    const Best best = best_of(pass, logits, config.top_k);
    r = {at::softmax(best.values, 1, dtype), best.indices};
  } else {
    Best best = best_of(pass, at::softmax(logits, -1, wide), config.top_k);
    if (config.renormalise) best.values = best.values / best.values.sum({-1}, true);
    r = {best.values.to(dtype), best.indices};
  }
  if (pass.on_routing) pass.on_routing(pass.layer, r.indices);
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
  if (!config.family->experts->clamped) return gated(gate, up, config.activation);
  const double limit = config.moe.swiglu_limit;
  gate = gate.clamp_max(limit), up = up.clamp(-limit, limit);
  return (up + 1) * (gate * at::sigmoid(gate * config.moe.swiglu_alpha));
}

// Without gradients on a CPU this many rows go through the experts at once: the values between two products stay in
// the cache, and no layer needs fresh memory from the system.
constexpr std::int64_t kRowsAtOnce = 512;

Tensor rows_through(const Pass& pass, const Experts& experts, const Tensor& x, const ExpertGroups& groups) {
  const Tensor sorted = groups.tokens == 1 ? x.expand({groups.rows(), x.size(1)}) : x.index_select(0, groups.token);
  const Tensor gate_up = experts.project(experts.gate_up, sorted, groups, pass.context);
  return experts.project(experts.down, gate_of(pass, experts, gate_up), groups, pass.context);
}

// The experts hit[first] to hit[last - 1] and their rows.
ExpertGroups part_of(const ExpertGroups& groups, std::size_t first, std::size_t last) {
  const std::int64_t start = groups.begin[first], rows = groups.begin[last] - start;
  ExpertGroups part;
  part.tokens = groups.tokens, part.top_k = groups.top_k;
  part.token = groups.token.narrow(0, start, rows), part.expert = groups.expert.narrow(0, start, rows);
  part.choice = groups.choice.narrow(0, start, rows);
  part.hit.assign(groups.hit.begin() + static_cast<std::ptrdiff_t>(first),
                  groups.hit.begin() + static_cast<std::ptrdiff_t>(last));
  for (std::size_t i = first; i <= last; ++i) part.begin.push_back(groups.begin[i] - start);
  return part;
}

bool in_parts(const Pass& pass, const Tensor& x, const ExpertGroups& groups) {
  return pass.inference && !pass.recording() && x.is_cpu() && groups.rows() > kRowsAtOnce;
}

// Sends each row through its expert.
Tensor through_experts(Pass& pass, const Experts& experts, const Tensor& x, const ExpertGroups& groups) {
  if (!in_parts(pass, x, groups)) return rows_through(pass, experts, x, groups);
  Tensor& y = pass.expert_rows;
  for (std::size_t first = 0, last = 0; first < groups.hit.size(); first = last) {
    while (last < groups.hit.size() && (last == first || groups.begin[last + 1] - groups.begin[first] <= kRowsAtOnce))
      ++last;
    const Tensor part = rows_through(pass, experts, x, part_of(groups, first, last));
    if (!y.defined() || y.size(0) != groups.rows() || y.size(1) != part.size(1))
      y = at::empty({groups.rows(), part.size(1)}, part.options());
    y.narrow(0, groups.begin[first], part.size(0)).copy_(part);
  }
  return y;
}

// The chosen experts' outputs, weighted and summed for each token.
Tensor combine(const Pass& pass, const Tensor& y, const Routing& routing, const ExpertGroups& groups) {
  const Tensor weights = routing.weights.to(y.scalar_type());
  if (groups.tokens == 1) return at::mm(weights.view({-1}).index_select(0, groups.choice).unsqueeze(0), y);
  const auto sums = [&](std::int64_t first, std::int64_t tokens) {
    const Tensor rows = y.index_select(0, groups.inverse.narrow(0, first * groups.top_k, tokens * groups.top_k));
    return at::bmm(weights.narrow(0, first, tokens).unsqueeze(1), rows.view({tokens, groups.top_k, y.size(1)}))
        .squeeze(1);
  };
  if (!in_parts(pass, y, groups)) return sums(0, groups.tokens);
  Tensor out = at::empty({groups.tokens, y.size(1)}, y.options());
  const std::int64_t step = std::max<std::int64_t>(1, kRowsAtOnce / groups.top_k);
  for (std::int64_t first = 0; first < groups.tokens; first += step) {
    const std::int64_t tokens = std::min(step, groups.tokens - first);
    out.narrow(0, first, tokens).copy_(sums(first, tokens));
  }
  return out;
}

}  // namespace

Tensor run_moe(Pass& pass, const Moe& moe, const Tensor& input) {
  Tensor x = input;
  const double jitter = pass.model.config.moe.jitter;
  if (pass.context.training && jitter > 0) x = x * at::empty_like(x).uniform_(1 - jitter, 1 + jitter);
  const Routing routing = route(pass, moe, x);
  const Experts& experts = *moe.experts;
  const ExpertGroups groups = group_by_expert(routing.indices, experts.num_experts());
  const Tensor y = through_experts(pass, experts, x, groups);
  Tensor out = combine(pass, y, routing, groups);
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
