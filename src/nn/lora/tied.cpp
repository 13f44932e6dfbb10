// Adapters on input and output embeddings that are one tensor of the base.
//
// Unmerged, an adapter acts on the module it is on. Merged into the shared tensor it would act on both, so while it is
// merged the output embedding has a tensor of its own, as in the folder that `peft merge` writes.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "nn/impl.h"
#include "nn/lora/impl.h"

namespace peft::nn {
namespace {

bool is_one_of_two(const CausalLM::Impl& base, const Tensor* weight) {
  return weight == &base.embed->weight || weight == &base.lm_head->weight;
}

bool changes_one(const PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  const bool lora = std::any_of(impl.sites.begin(), impl.sites.end(), [&](const auto& site) {
    return is_one_of_two(base, site->weight) && site->find(id) != nullptr;
  });
  if (lora) return true;
  bool own = false, both = false;
  for (const TokenRows& rows : impl.token_rows) {
    const TokenRows::Rows* found = is_one_of_two(base, rows.weight) ? rows.find(id) : nullptr;
    own = own || found != nullptr;
    both = both || (found != nullptr && found->follows);
  }
  return own && !both;
}

}  // namespace

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
    if (overlay.kind != Overlay::Kind::base_value || !is_one_of_two(base, overlay.places.front())) continue;
    overlay.places.push_back(overlay.places.front() == input ? output : input);
  }
}

void stay_untied(PeftModel::Impl& impl) {
  CausalLM::Impl& base = impl.base->impl();
  impl.tied_head.reset();
  base.tied = base.config.tied = base.lm_head->weight.is_same(base.embed->weight);
}

void warn_of_tied(PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  if (!base.tied) return;
  std::vector<std::string> modules;
  for (const auto& site : impl.sites) {
    if (is_one_of_two(base, site->weight) && site->find(id) != nullptr) modules.push_back(site->module);
  }
  for (const Overlay& overlay : impl.overlays) {
    const bool copy = overlay.kind == Overlay::Kind::saved_module && overlay.adapters.contains(id);
    if (copy && is_one_of_two(base, overlay.places.front())) modules.push_back(overlay.module);
  }
  for (const std::string& module : modules) {
    impl.warnings.push_back(
        fmt::format("{} is tied (tie_word_embeddings) and part of the adapter: the adapter acts "
                    "on this module alone, and merging it gives lm_head a tensor of its own",
                    module));
  }
}

}  // namespace peft::nn
