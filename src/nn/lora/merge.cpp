// Adapters in the weights, with PEFT's roundings, and out again.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "nn/lora/dora.h"
#include "nn/lora/impl.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

// PEFT adds what it computed in fp32 (Linear) or rounds the delta to the weight's dtype first (everything else, and
// Linear when safe_merge is asked for).
Tensor merged_weight(const Site& site, const SiteFactors& factors, Tensor gain, bool safe) {
  const Tensor& weight = *site.weight;
  Tensor delta = delta_weight(site, factors);
  if (gain.defined()) {
    gain = gain.unsqueeze(-1);
    const bool turned = site.kind == SiteKind::experts ? site.in_out : site.kind == SiteKind::embedding;
    if (turned) gain = gain.transpose(-1, -2);
    return (gain * (weight + delta)).to(weight.scalar_type());
  }
  if (safe || site.by_parameter || site.kind == SiteKind::embedding) delta = delta.to(weight.scalar_type());
  return (weight + delta).to(weight.scalar_type());
}

[[noreturn]] void not_finite(const Site& site, const std::string& adapter) {
  throw Error(ErrorCode::NUM_NONFINITE, {.tensor = site.name(),
                                         .problem = "merging gives NaN or infinity",
                                         .got = "adapter \"" + adapter + "\" seems to be broken",
                                         .hint = "nothing of this adapter was merged into this weight"});
}

bool is_merged(const Site& site, int id) {
  return std::find(site.merged.begin(), site.merged.end(), id) != site.merged.end();
}

// DoRA's norms are those of the weight before anything was merged into it.
std::map<int, Tensor> gains_of(Site& site, const std::vector<int>& ids) {
  std::map<int, Tensor> result;
  Tensor before = site.unmerged;
  Tensor* const weight = site.weight;
  for (const int id : ids) {
    const SiteFactors* factors = site.find(id);
    if (factors == nullptr || !factors->magnitude.defined() || is_merged(site, id)) continue;
    if (!site.merged.empty() && !before.defined()) {
      throw Error(ErrorCode::USAGE, {.tensor = site.name(),
                                     .problem = "DoRA needs the weight as it was before other adapters were merged",
                                     .hint = "merge them in one call, or with keep_base"});
    }
    if (!site.merged.empty()) site.weight = &before;
    result[id] = gains(site, *factors).clone();
    site.weight = weight;
  }
  return result;
}

void merge_one(PeftModel::Impl& impl, Site& site, int id, const Tensor& gain, const MergeOptions& options) {
  const SiteFactors* factors = site.find(id);
  if (factors == nullptr || is_merged(site, id)) return;
  const std::string& name = impl.entry_of(id).name;
  if (factors->bias.defined() && site.base_bias == nullptr) {
    throw Error(ErrorCode::CF_UNSUP, {.tensor = site.name(),
                                      .problem = "lora_bias cannot be merged: the module has no bias",
                                      .expected = "a base module with a bias",
                                      .hint = "run the adapter unmerged"});
  }
  const Tensor weight = merged_weight(site, *factors, gain, options.safe_merge);
  const Tensor bias = factors->bias.defined() ? *site.base_bias + factors->bias * factors->stack.scale : Tensor();
  for (const Tensor& merged : {weight, bias}) {
    if (options.safe_merge && merged.defined() && !at::isfinite(merged).all().item<bool>()) not_finite(site, name);
  }
  if (site.merged.empty() && options.keep_base) {
    site.unmerged = site.weight->detach().clone();
    if (factors->bias.defined()) site.unmerged_bias = site.base_bias->detach().clone();
  }
  site.weight->copy_(weight);
  if (factors->bias.defined()) {
    if (!site.unmerged_bias.defined() && options.keep_base) site.unmerged_bias = site.base_bias->detach().clone();
    site.base_bias->copy_(bias);
  }
  site.merged.push_back(id);
}

// Without a copy: what PEFT does, which does not give the same bits back.
void subtract(Site& site, int id) {
  const SiteFactors& factors = *site.find(id);
  if (factors.magnitude.defined()) {
    throw Error(ErrorCode::USAGE,
                {.tensor = site.name(),
                 .problem = "a DoRA adapter cannot be taken out of the weights without a copy of them",
                 .hint = "merge with keep_base"});
  }
  site.weight->sub_(delta_weight(site, factors).to(site.weight->scalar_type()));
  if (factors.bias.defined()) site.base_bias->sub_(factors.bias * factors.stack.scale);
}

}  // namespace

void merge_adapters(PeftModel::Impl& impl, const MergeOptions& options, const std::vector<int>& ids) {
  const at::NoGradGuard no_grad;
  require_rows_disjoint(impl, ids);
  untie_for_merge(impl, ids);
  merge_token_rows(impl, options, ids);
  for (const auto& site : impl.sites) {
    auto norms = gains_of(*site, ids);
    for (const int id : ids) merge_one(impl, *site, id, norms[id], options);
  }
}

void unmerge_adapters(PeftModel::Impl& impl) {
  const at::NoGradGuard no_grad;
  for (const auto& site : impl.sites) {
    if (site->merged.empty()) continue;
    if (site->unmerged.defined()) {
      site->weight->copy_(site->unmerged);
      if (site->unmerged_bias.defined()) site->base_bias->copy_(site->unmerged_bias);
    } else {
      for (auto id = site->merged.rbegin(); id != site->merged.rend(); ++id) subtract(*site, *id);
    }
    site->merged.clear();
    site->unmerged.reset();
    site->unmerged_bias.reset();
  }
  unmerge_token_rows(impl);
  tie_again(impl);
}

}  // namespace peft::nn
