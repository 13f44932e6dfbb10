#include "nn/lora/apply.h"

#include <ATen/ATen.h>

#include "nn/lora/dora.h"

namespace peft::nn {
namespace {

using at::Tensor;

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
  const Tensor delta = at::mm(looked_up, other.select(0, 0)) * (stack.scale * site.embed_scale);
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

}  // namespace peft::nn
