#include "nn/lora/files/factors.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/text.h"
#include "peft/adapter.h"

namespace peft::nn {
namespace {

constexpr const char* kPrefix = "base_model.model.";

Tensor as_it_is(const Tensor& tensor) { return tensor; }
Tensor without_stack(const Tensor& tensor) { return tensor.squeeze(0); }
Tensor with_stack(const Tensor& tensor) { return tensor.unsqueeze(0); }
Tensor transposed(const Tensor& tensor) { return tensor.squeeze(0).t(); }
Tensor transposed_back(const Tensor& tensor) { return tensor.t().unsqueeze(0); }

// The inverses of a_in_file_form and b_in_file_form for stacks of this many experts.
struct StackAgain {
  std::int64_t experts;
  Tensor operator()(const Tensor& a) const { return a.unflatten(0, {experts, -1}); }
};
struct TransposedStackAgain {
  std::int64_t experts;
  Tensor operator()(const Tensor& b) const { return b.unflatten(1, {-1, experts}).permute({2, 1, 0}); }
};

void add_site(std::vector<AdapterTensor>& tensors, const std::string& key, const Site& site,
              const SiteFactors& factors) {
  if (site.kind == SiteKind::embedding && !site.by_parameter) {
    tensors.push_back({key + ".lora_embedding_A", factors.stack.a, without_stack, with_stack});
    tensors.push_back({key + ".lora_embedding_B", factors.stack.b, transposed, transposed_back});
  } else {
    tensors.push_back({key + ".lora_A.weight", factors.stack.a, a_in_file_form, StackAgain{factors.stack.experts()}});
    tensors.push_back(
        {key + ".lora_B.weight", factors.stack.b, b_in_file_form, TransposedStackAgain{factors.stack.experts()}});
  }
  if (factors.bias.defined()) tensors.push_back({key + ".lora_B.bias", factors.bias, as_it_is, as_it_is});
  if (factors.magnitude.defined())
    tensors.push_back({key + ".lora_magnitude_vector", factors.magnitude, as_it_is, as_it_is});
}

// Whether gate still uses only the first `split` components and up only the rest. Training fills B's empty blocks.
bool is_split(const Site& site, const SiteFactors& factors, bool interleaved) {
  if (factors.split < 0) return false;
  const Tensor b = factors.stack.b.detach();
  const std::int64_t out = site.out();
  const Tensor first = b.narrow(1, 0, factors.split), last = b.narrow(1, factors.split, b.size(1) - factors.split);
  const Tensor up_of_first = interleaved ? first.slice(2, 1, out, 2) : first.slice(2, out / 2, out);
  const Tensor gate_of_last = interleaved ? last.slice(2, 0, out, 2) : last.slice(2, 0, out / 2);
  return !up_of_first.any().item<bool>() && !gate_of_last.any().item<bool>();
}

class Collector {
 public:
  Collector(const PeftModel::Impl& impl, int id) : impl_(impl), id_(id) {}

  InMemory run() {
    NamedTensors tensors;
    for (const auto& site : impl_.sites) {
      const SiteFactors* factors = site->find(id_);
      if (factors == nullptr) continue;
      // The encoders copy a dense pair as it lies, so it must lie as in a file. Stacks are taken apart by views.
      const bool stacked = site->kind == SiteKind::experts;
      const FactorStack& stack = factors->stack;
      tensors.emplace_back("a " + site->name(), stacked ? stack.a : stack.a.squeeze(0));
      tensors.emplace_back("b " + site->name(), stacked ? stack.b : stack.b.squeeze(0).t());
      if (factors->magnitude.defined() && site->kind == SiteKind::experts) magnitude_rows(*site, *factors, tensors);
    }
    for (const AdapterTensor& tensor : tensors_of(impl_, impl_.entry_of(id_))) {
      if (is_extra(tensor.key)) tensors.emplace_back(tensor.key, tensor.in_file_form(tensor.tensor));
    }
    result_.memory = memory_file(tensors);
    for (const auto& site : impl_.sites) {
      if (const SiteFactors* factors = site->find(id_)) add(*site, *factors);
    }
    extras();
    sort();
    return std::move(result_);
  }

 private:
  static bool is_extra(const std::string& key) {
    return !key.ends_with(".lora_A.weight") && !key.ends_with(".lora_B.weight") &&
           key.find(".lora_embedding_") == std::string::npos;
  }

  const ExpertsForm::Fused* form_of(const Site& site, const peft::Experts** experts) const {
    for (const peft::Experts& e : impl_.model.experts) {
      if (e.form == nullptr) continue;
      for (const ExpertsForm::Fused& fused : e.form->v5) {
        if (fused.name != site.parameter || e.fused_module(Generation::v5, fused) != site.module) continue;
        *experts = &e;
        return &fused;
      }
    }
    return nullptr;
  }

  View view(const std::string& name, std::int64_t expert, std::int64_t rows, std::int64_t width) const {
    return {0, result_.memory->index(name), expert * rows * width, rows, width, width, 1};
  }

  void add(const Site& site, const SiteFactors& factors) {
    const FactorStack& stack = factors.stack;
    const peft::Experts* experts = nullptr;
    const ExpertsForm::Fused* form = site.by_parameter ? form_of(site, &experts) : nullptr;
    if (site.kind != SiteKind::experts) {
      Factor factor = matrix(site, stack, 0);
      if (form != nullptr)
        factor.site = {experts->v5_module, site.parameter, -1, Projection::none};
      else
        factor.site.module = site.module;
      result_.factors.factors.push_back(std::move(factor));
      return;
    }
    result_.factors.expert_counts.push_back({experts->v5_module, stack.experts()});
    const bool split = is_split(site, factors, form->interleaved);
    for (std::int64_t e = 0; e < stack.experts(); ++e) add_expert(site, factors, *form, experts->v5_module, e, split);
  }

  Factor matrix(const Site& site, const FactorStack& stack, std::int64_t expert) const {
    Factor factor;
    factor.kind = site.kind == SiteKind::embedding && !site.by_parameter ? FactorKind::embedding : FactorKind::linear;
    factor.in = stack.in(), factor.out = stack.out(), factor.rank = stack.rank(), factor.scale = stack.scale;
    factor.a = view("a " + site.name(), expert, stack.rank(), stack.in());
    factor.b = site.kind == SiteKind::experts ? view("b " + site.name(), expert, stack.rank(), stack.out()).transposed()
                                              : view("b " + site.name(), 0, stack.out(), stack.rank());
    return factor;
  }

  void add_expert(const Site& site, const SiteFactors& factors, const ExpertsForm::Fused& form,
                  const std::string& module, std::int64_t expert, bool split) {
    const std::size_t parts = std::max<std::size_t>(1, form.projections.size());
    for (std::size_t p = 0; p < parts; ++p) {
      Factor factor = matrix(site, factors.stack, expert);
      factor.site = {module, form.projections.empty() ? form.name : "", expert,
                     form.projections.empty() ? Projection::none : form.projections[p]};
      const auto part = static_cast<std::int64_t>(p), count = static_cast<std::int64_t>(parts);
      factor.out /= count;
      factor.b = form.interleaved ? factor.b.row_range(part, factor.out, count)
                                  : factor.b.row_range(part * factor.out, factor.out);
      if (split) {
        const std::int64_t first = p == 0 ? 0 : factors.split;
        factor.rank = p == 0 ? factors.split : factors.stack.rank() - factors.split;
        factor.a = factor.a.row_range(first, factor.rank);
        factor.b = factor.b.col_range(first, factor.rank);
      }
      if (factor.rank > 0) result_.factors.factors.push_back(std::move(factor));
    }
  }

  // DoRA on experts has one tensor for each expert and projection on disk.
  void magnitude_rows(const Site& site, const SiteFactors& factors, NamedTensors& tensors) {
    const peft::Experts* experts = nullptr;
    const ExpertsForm::Fused* form = form_of(site, &experts);
    const auto parts = static_cast<std::int64_t>(form->projections.size());
    const std::int64_t out = site.out() / parts;
    for (std::int64_t e = 0; e < factors.stack.experts(); ++e) {
      const Tensor row = factors.magnitude.detach().select(0, e);
      for (std::int64_t p = 0; p < parts; ++p) {
        const std::string name = "magnitude " + site.name() + " " + std::to_string(e) + " " + std::to_string(p);
        tensors.emplace_back(name,
                             form->interleaved ? row.slice(0, p, site.out(), parts) : row.narrow(0, p * out, out));
        pending_.push_back({name, {experts->v5_module, "", e, form->projections[static_cast<std::size_t>(p)]}});
      }
    }
  }

  void extras() {
    auto& list = result_.factors.extras;
    for (const auto& [name, site] : pending_) {
      list.push_back({ExtraKind::magnitude, site, "lora_magnitude_vector", result_.memory->index(name)});
    }
    for (const AdapterTensor& tensor : tensors_of(impl_, impl_.entry_of(id_))) {
      if (!is_extra(tensor.key)) continue;
      add_extra(tensor.key);
    }
  }

  void add_extra(const std::string& key) {
    struct Row {
      std::string_view suffix;
      ExtraKind kind;
    };
    constexpr Row kRows[] = {{".lora_magnitude_vector", ExtraKind::magnitude},
                             {".lora_B.bias", ExtraKind::lora_bias},
                             {".token_adapter.trainable_tokens_delta", ExtraKind::token_delta}};
    std::string name = key.substr(std::string_view("base_model.model.").size());
    for (const Row& row : kRows) {
      if (!name.ends_with(row.suffix)) continue;
      const std::string module = name.substr(0, name.size() - row.suffix.size());
      if (const Site* site = impl_.find_site(module, "weight"); site == nullptr && row.kind != ExtraKind::token_delta)
        return;
      result_.factors.extras.push_back({row.kind,
                                        {module, "", -1, Projection::none},
                                        std::string(row.suffix.substr(1)),
                                        result_.memory->index(key)});
      return;
    }
    for (const Overlay& overlay : impl_.overlays) {
      if (!name.starts_with(overlay.module + ".")) continue;
      const std::string suffix = name.substr(overlay.module.size() + 1);
      const bool own = suffix == overlay.parameter || suffix == "base_layer." + overlay.parameter;
      if (!own) continue;
      const bool bias =
          overlay.parameter.find("bias") != std::string::npos && overlay.kind == Overlay::Kind::base_value;
      result_.factors.extras.push_back({bias ? ExtraKind::base_bias : ExtraKind::saved_module,
                                        {overlay.module, "", -1, Projection::none},
                                        suffix,
                                        result_.memory->index(key)});
      return;
    }
  }

  // The encoders need all factors of a module side by side.
  void sort() {
    std::stable_sort(result_.factors.factors.begin(), result_.factors.factors.end(),
                     [](const Factor& x, const Factor& y) {
                       if (x.site.module != y.site.module) return natural_less(x.site.module, y.site.module);
                       if (x.site.parameter != y.site.parameter) return x.site.parameter < y.site.parameter;
                       if (x.site.expert != y.site.expert) return x.site.expert < y.site.expert;
                       return x.site.projection < y.site.projection;
                     });
  }

  const PeftModel::Impl& impl_;
  const int id_;
  InMemory result_;
  std::vector<std::pair<std::string, peft::Site>> pending_;
};

}  // namespace

std::vector<AdapterTensor> tensors_of(const PeftModel::Impl& impl, const AdapterEntry& entry) {
  std::vector<AdapterTensor> tensors;
  for (const auto& site : impl.sites) {
    if (const SiteFactors* factors = site->find(entry.id)) {
      add_site(tensors, kPrefix + impl.key_of(*site, entry.id), *site, *factors);
    }
  }
  for (const TokenRows& rows : impl.token_rows) {
    const auto own = rows.adapters.find(entry.id);
    if (own == rows.adapters.end() || own->second.follows) continue;
    tensors.push_back(
        {kPrefix + rows.module + ".token_adapter.trainable_tokens_delta", own->second.delta, as_it_is, as_it_is});
  }
  for (const Overlay& overlay : impl.overlays) {
    const auto own = overlay.adapters.find(entry.id);
    if (own == overlay.adapters.end()) continue;
    const auto suffix = overlay.suffix.find(entry.id);
    const std::string last = suffix == overlay.suffix.end() ? overlay.parameter : suffix->second;
    tensors.push_back({kPrefix + overlay.module + "." + last, own->second, as_it_is, as_it_is});
  }
  return tensors;
}

InMemory factors_of(const PeftModel::Impl& impl, const AdapterEntry& entry) { return Collector(impl, entry.id).run(); }

}  // namespace peft::nn
