#include "nn/lora/sites/hooks.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace peft::nn {
namespace {

Tensor dropped(const Tensor& x, const SiteFactors& factors, bool training) {
  return training && factors.dropout > 0 ? at::dropout(x.to(factors.stack.a.scalar_type()), factors.dropout, true) : x;
}

// g * (y - bias) + bias + g * s * B A x, written as PEFT does: with dropout the base part sees the dropped x too.
Tensor apply_dora(const Site& site, const SiteFactors& factors, const Tensor& y, const Tensor& x, bool training) {
  const auto type = factors.stack.a.scalar_type();
  const Tensor gain = gains(site, factors);
  const Tensor input = dropped(x, factors, training).to(type);
  Tensor base = y;
  if (training && factors.dropout > 0)
    base = at::linear(input, site.weight->to(type));
  else if (site.base_bias != nullptr)
    base = y - *site.base_bias;
  const Tensor zero = at::zeros({x.size(0), factors.stack.out()}, input.options());
  const Tensor delta = add_grouped(zero, input, factors.stack, one_group(x.size(0)));
  return y + (gain - 1) * base + gain * delta;
}

// The rows of one adapter in a mixed batch.
struct Part {
  int adapter = -1;
  Tensor rows;  // [n] int64, ascending
};

// Groups rows by adapter. Row i belongs to token `token[i]` of `tokens`, in sequence order. Rows without an adapter are
// in no part.
std::vector<Part> parts_of(const ForwardContext& context, const Tensor& token, std::int64_t tokens) {
  const auto& of_sequence = context.adapter_of_sequence;
  const auto sequences = static_cast<std::int64_t>(of_sequence.size());
  const Tensor sequence = at::floor_divide(token, std::max<std::int64_t>(1, tokens / sequences));
  const Tensor owner = at::tensor(of_sequence, at::kLong).to(token.device()).index_select(0, sequence);
  std::vector<std::int64_t> ids(of_sequence);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::vector<Part> parts;
  for (const std::int64_t id : ids) {
    if (id >= 0) parts.push_back({static_cast<int>(id), owner.eq(id).nonzero().squeeze(1)});
  }
  return parts;
}

std::vector<Part> parts_of(const ForwardContext& context, const Tensor& rows) {
  return parts_of(context, at::arange(rows.size(0), rows.options().dtype(at::kLong)), rows.size(0));
}

bool is_mixed(const ForwardContext& context) { return !context.adapter_of_sequence.empty(); }

// y with the rows of each part replaced by body(part, those rows of y).
template <class Body>
Tensor by_parts(const Tensor& y, const std::vector<Part>& parts, Body&& body) {
  Tensor result = y;
  for (const Part& part : parts) {
    if (part.rows.size(0) == 0) continue;
    const Tensor changed = body(part, y.index_select(0, part.rows));
    result = result.index_copy(0, part.rows, changed.to(y.scalar_type()));
  }
  return result;
}

}  // namespace

Tensor apply_linear(const Site& site, const SiteFactors& factors, const Tensor& y, const Tensor& x, bool training) {
  if (factors.magnitude.defined()) return apply_dora(site, factors, y, x, training);
  Tensor sum = add_grouped(y, dropped(x, factors, training), factors.stack, one_group(x.size(0)));
  if (factors.bias.defined()) sum = sum + factors.bias * factors.stack.scale;
  return sum;
}

Tensor apply_embedding(const Site& site, const SiteFactors& factors, const Tensor& y, const Tensor& ids) {
  const FactorStack& stack = factors.stack;
  // By parameter the table itself is [out, in] = [vocabulary, dim], so the rows of B are looked up.
  const Tensor& table = site.by_parameter ? stack.b : stack.a;
  const Tensor& other = site.by_parameter ? stack.a : stack.b;
  const Tensor looked_up = at::embedding(table.select(0, 0).t(), ids);  // [rows, rank]
  const Tensor delta = at::mm(looked_up, other.select(0, 0)) * stack.scale;
  if (!factors.magnitude.defined()) return y + delta;
  return gains(site, factors) * (y + delta);
}

Tensor apply_experts(const Site& site, const SiteFactors& factors, const Tensor& y, const Tensor& x,
                     const RowGroups& groups, const Tensor& expert, bool training) {
  const Tensor input = dropped(x, factors, training);
  if (!factors.magnitude.defined()) return add_grouped(y, input, factors.stack, groups);
  const Tensor gain = gains(site, factors, &groups.hit).index_select(0, expert);
  if (!(training && factors.dropout > 0)) return gain * add_grouped(y, input, factors.stack, groups);
  // The base part sees the dropped x as well; the rows are few enough here to go through the weights once more.
  const Tensor zero = at::zeros(y.sizes(), input.options());
  const Tensor delta = add_grouped(zero, input, factors.stack, groups);
  const Tensor natural = site.in_out ? site.weight->transpose(1, 2) : *site.weight;
  std::vector<Tensor> base;
  for (std::size_t i = 0; i < groups.hit.size(); ++i) {
    const Tensor rows = input.narrow(0, groups.begin[i], groups.begin[i + 1] - groups.begin[i]);
    base.push_back(at::linear(rows, natural.select(0, groups.hit[i]).to(rows.scalar_type())));
  }
  return y + (gain - 1) * at::cat(base) + gain * delta;
}

Tensor apply_bias_rows(const SiteFactors& factors, const Tensor& y, const Tensor& expert) {
  const FactorStack& stack = factors.stack;  // B [1, rank, E], A [1, rank, out]
  const Tensor rows = stack.b.select(0, 0).t().index_select(0, expert);
  return y + at::mm(rows, stack.a.select(0, 0)) * stack.scale;
}

Tensor LinearHook::replace(int adapter, const Linear& base, const Tensor& y, const Tensor& x,
                           const ForwardContext& context) const {
  Tensor result = y;
  if (saved != nullptr && is_mixed(context)) {
    const auto own = saved->adapters.find(adapter);
    if (own != saved->adapters.end()) result = at::linear(x, own->second, base.bias);
  }
  const TokenRows::Rows* own = rows == nullptr || !rows->merged.empty() ? nullptr : rows->find(adapter);
  if (own == nullptr) return result;
  const Tensor logits = at::linear(x, own->delta.to(x.scalar_type()));
  return result.index_copy(1, own->ids, logits.to(result.scalar_type()));
}

Tensor LinearHook::apply(int adapter, const Tensor& y, const Tensor& x, const ForwardContext& context) const {
  const SiteFactors* factors = site == nullptr || !site->merged.empty() ? nullptr : site->find(adapter);
  return factors == nullptr ? y : apply_linear(*site, *factors, y, x, context.training);
}

Tensor LinearHook::forward(const Linear& base, const Tensor& x, const ForwardContext& context) {
  Tensor y = base.compute(x);
  if (!control->enabled) return y;
  if (is_mixed(context)) {
    return by_parts(y, parts_of(context, x), [&](const Part& part, const Tensor& mine) {
      const Tensor own_x = x.index_select(0, part.rows);
      return apply(part.adapter, replace(part.adapter, base, mine, own_x, context), own_x, context);
    });
  }
  const auto type = y.scalar_type();
  for (const int adapter : control->active) y = replace(adapter, base, y, x, context);
  for (const int adapter : control->active) y = apply(adapter, y, x, context);
  return y.to(type);
}

Tensor EmbeddingHook::apply(int adapter, const Tensor& y, const Tensor& ids) const {
  Tensor result = y;
  if (site != nullptr && site->merged.empty()) {
    if (const SiteFactors* factors = site->find(adapter)) result = apply_embedding(*site, *factors, result, ids);
  }
  const TokenRows::Rows* own = rows == nullptr || !rows->merged.empty() ? nullptr : rows->find(adapter);
  if (own == nullptr) return result;
  const Tensor hit = ids.unsqueeze(1).eq(own->ids.unsqueeze(0));  // [rows, n]
  // For a token that is listed twice the last row counts, as in index_copy.
  const Tensor place = at::arange(1, own->ids.size(0) + 1, own->ids.options());
  const Tensor replaced = own->delta.index_select(0, (hit * place).argmax(1));
  return at::where(hit.any(1).unsqueeze(1), replaced.to(result.scalar_type()), result);
}

Tensor EmbeddingHook::forward(const Embedding& base, const Tensor& ids, const ForwardContext& context) {
  Tensor y = base.compute(ids);
  if (!control->enabled) return y;
  if (is_mixed(context)) {
    return by_parts(y, parts_of(context, ids), [&](const Part& part, const Tensor& mine) {
      const Tensor own_ids = ids.index_select(0, part.rows);
      Tensor start = mine;
      if (saved != nullptr) {
        const auto own = saved->adapters.find(part.adapter);
        if (own != saved->adapters.end()) start = at::embedding(own->second, own_ids);
      }
      return apply(part.adapter, start, own_ids);
    });
  }
  const auto type = y.scalar_type();
  for (const int adapter : control->active) y = apply(adapter, y, ids);
  return y.to(type);
}

Tensor ExpertHook::apply_one(int adapter, const Tensor& y, const Tensor& x, const RowGroups& groups,
                             const Tensor& expert, bool training) const {
  Tensor result = y;
  if (site != nullptr && site->merged.empty()) {
    if (const SiteFactors* factors = site->find(adapter)) {
      result = apply_experts(*site, *factors, result, x, groups, expert, training);
    }
  }
  if (bias_site != nullptr && bias_site->merged.empty()) {
    if (const SiteFactors* factors = bias_site->find(adapter)) result = apply_bias_rows(*factors, result, expert);
  }
  return result;
}

const SiteFactors* ExpertHook::only_factors(bool training) const {
  if (site == nullptr || bias_site != nullptr || !site->merged.empty()) return nullptr;
  const SiteFactors* only = nullptr;
  for (const int adapter : control->active) {
    const SiteFactors* factors = site->find(adapter);
    if (factors == nullptr) continue;
    if (only != nullptr || factors->magnitude.defined() || (training && factors->dropout > 0)) return nullptr;
    only = factors;
  }
  return only;
}

Tensor ExpertHook::apply(const Tensor& base_out, const Tensor& x, const ExpertGroups& groups,
                         const ForwardContext& context) {
  if (!control->enabled) return base_out;
  if (is_mixed(context)) {
    return by_parts(base_out, parts_of(context, groups.token, groups.tokens),
                    [&](const Part& part, const Tensor& mine) {
                      const Tensor expert = groups.expert.index_select(0, part.rows);
                      RowGroups own;
                      const Tensor on_host = expert.cpu();
                      const auto* values = on_host.const_data_ptr<std::int64_t>();
                      for (std::int64_t i = 0; i < on_host.size(0); ++i) {
                        if (own.hit.empty() || own.hit.back() != values[i]) {
                          own.hit.push_back(values[i]);
                          own.begin.push_back(i);
                        }
                      }
                      own.begin.push_back(on_host.size(0));
                      return apply_one(part.adapter, mine, x.index_select(0, part.rows), own, expert, context.training);
                    });
  }
  Tensor y = base_out;
  const auto type = y.scalar_type();
  const SiteFactors* only = only_factors(context.training);
  if (only != nullptr && can_add_rounded(y, x, only->stack)) return add_rounded(y, x, only->stack, groups);
  for (const int adapter : control->active) y = apply_one(adapter, y, x, groups, groups.expert, context.training);
  return y.to(type);
}

}  // namespace peft::nn
