#include "nn/lora/merge.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "nn/model/network.h"
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
    if (site.base_is_in_out()) gain = gain.transpose(-1, -2);
    return (gain * (weight + delta)).to(weight.scalar_type());
  }
  if (safe || site.by_parameter || site.kind == SiteKind::embedding) delta = delta.to(weight.scalar_type());
  return (weight + delta).to(weight.scalar_type());
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
      peft::at({}, site.name())
          .fail(ErrorCode::USAGE, {.problem = "DoRA needs the weight as it was before other adapters were merged",
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
    peft::at({}, site.name())
        .fail(ErrorCode::CF_UNSUP, {.problem = "lora_bias cannot be merged: the module has no bias",
                                    .expected = "a base module with a bias",
                                    .hint = "run the adapter unmerged"});
  }
  const Tensor weight = merged_weight(site, *factors, gain, options.safe_merge);
  const Tensor bias = factors->bias.defined() ? *site.base_bias + factors->bias * factors->stack.scale : Tensor();
  for (const Tensor& merged : {weight, bias}) {
    if (options.safe_merge && merged.defined() && !at::isfinite(merged).all().item<bool>())
      at({}, site.name())
          .fail(ErrorCode::NUM_NONFINITE, {.problem = "merging gives NaN or infinity",
                                           .got = "adapter \"" + name + "\" seems to be broken",
                                           .hint = "nothing of this adapter was merged into this weight"});
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

// Unmerges without a copy, as PEFT does. The weights may differ by rounding.
void subtract(Site& site, int id) {
  const SiteFactors& factors = *site.find(id);
  if (factors.magnitude.defined()) {
    peft::at({}, site.name())
        .fail(ErrorCode::USAGE, {.problem = "a DoRA adapter cannot be taken out of the weights without a copy of them",
                                 .hint = "merge with keep_base"});
  }
  site.weight->sub_(delta_weight(site, factors).to(site.weight->scalar_type()));
  if (factors.bias.defined()) site.base_bias->sub_(factors.bias * factors.stack.scale);
}

void merge_token_rows(PeftModel::Impl& impl, const MergeOptions& options, const std::vector<int>& ids) {
  for (TokenRows& rows : impl.token_rows) {
    for (const int id : ids) {
      const auto at = rows.adapters.find(id);
      if (at == rows.adapters.end() || std::count(rows.merged.begin(), rows.merged.end(), id) > 0) continue;
      TokenRows::Rows& own = at->second;
      const Tensor values = own.delta.to(rows.weight->scalar_type());
      if (options.safe_merge && !at::isfinite(values).all().item<bool>()) {
        peft::at({}, rows.module)
            .fail(ErrorCode::NUM_NONFINITE, {.problem = "NaN or infinity in the rows of trainable tokens",
                                             .got = "adapter \"" + impl.entry_of(id).name + "\" seems to be broken"});
      }
      own.before = rows.weight->index_select(0, own.ids);
      rows.weight->index_copy_(0, own.ids, values);
      rows.merged.push_back(id);
    }
  }
}

// In reverse order: of two tied embeddings, the first copy has the base's rows.
void unmerge_token_rows(PeftModel::Impl& impl) {
  for (auto rows = impl.token_rows.rbegin(); rows != impl.token_rows.rend(); ++rows) {
    for (; !rows->merged.empty(); rows->merged.pop_back()) {
      TokenRows::Rows& own = rows->adapters.at(rows->merged.back());
      rows->weight->index_copy_(0, own.ids, own.before);
      own.before.reset();
    }
  }
}

bool changes_one(const PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  const bool lora = std::any_of(impl.sites.begin(), impl.sites.end(), [&](const auto& site) {
    return base.is_embedding(site->weight) && site->find(id) != nullptr;
  });
  if (lora) return true;
  bool own = false, both = false;
  for (const TokenRows& rows : impl.token_rows) {
    const TokenRows::Rows* found = base.is_embedding(rows.weight) ? rows.find(id) : nullptr;
    own = own || found != nullptr;
    both = both || (found != nullptr && found->follows);
  }
  return own && !both;
}

// Where only one of the two embeddings changes, the output gets a tensor of its own.
void untie_for_merge(PeftModel::Impl& impl, const std::vector<int>& ids) {
  CausalLM::Impl& base = impl.base->impl();
  if (!base.lm_head->weight.is_same(base.embed->weight)) return;
  if (std::none_of(ids.begin(), ids.end(), [&](int id) { return changes_one(impl, id); })) return;
  impl.tied_head = base.lm_head->weight;
  base.lm_head->weight = base.lm_head->weight.detach().clone();
  base.tied = false;
  for (Overlay& overlay : impl.overlays) overlay.places.resize(1);
  impl.warnings.push_back(
      fmt::format("{} and {} are one tensor (tie_word_embeddings) and only one of them changes: "
                  "while the adapter is merged they are two",
                  base.embed->name, base.lm_head->name));
}

void tie_again(PeftModel::Impl& impl) {
  if (!impl.tied_head.defined()) return;
  CausalLM::Impl& base = impl.base->impl();
  Tensor *input = &base.embed->weight, *output = &base.lm_head->weight;
  *output = std::exchange(impl.tied_head, Tensor());
  base.tied = true;
  for (Overlay& overlay : impl.overlays) {
    if (overlay.kind != Overlay::Kind::base_value || !base.is_embedding(overlay.places.front())) continue;
    overlay.places.push_back(overlay.places.front() == input ? output : input);
  }
}

std::string names_of(const PeftModel::Impl& impl, int one, int other) {
  return impl.entry_of(one).name + ", " + impl.entry_of(other).name;
}

}  // namespace

void require_rows_disjoint(const PeftModel::Impl& impl, const std::vector<int>& ids) {
  for (const TokenRows& rows : impl.token_rows) {
    std::vector<int> all = rows.merged;
    for (const int id : ids) {
      if (rows.find(id) != nullptr && std::count(all.begin(), all.end(), id) == 0) all.push_back(id);
    }
    std::map<std::int64_t, int> owner;
    for (const int id : all) {
      for (const std::int64_t token : rows.find(id)->tokens) {
        const int first = owner.emplace(token, id).first->second;
        if (first == id) continue;
        peft::at({}, rows.module)
            .fail(ErrorCode::USAGE, {.problem = "several of the adapters have a row for the same token",
                                     .expected = "each token in one of them",
                                     .got = fmt::format("token {} in {}", token, names_of(impl, first, id)),
                                     .hint = "use one of them at a time"});
      }
    }
  }
}

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

void stay_untied(PeftModel::Impl& impl) {
  CausalLM::Impl& base = impl.base->impl();
  impl.tied_head.reset();
  base.tied = base.config.tied = base.lm_head->weight.is_same(base.embed->weight);
}

}  // namespace peft::nn
