// The tensors of an adapter under PEFT's names, for saving, for optimisers and for counting.
#include <ATen/ATen.h>

#include "nn/lora/impl.h"

namespace peft::nn {
namespace {

constexpr const char* kPrefix = "base_model.model.";

Tensor as_it_is(const Tensor& tensor) { return tensor; }
Tensor without_stack(const Tensor& tensor) { return tensor.squeeze(0); }
Tensor transposed(const Tensor& tensor) { return tensor.squeeze(0).t(); }

void add_site(std::vector<AdapterTensor>& tensors, const std::string& key, const Site& site,
              const SiteFactors& factors) {
  if (site.kind == SiteKind::embedding && !site.by_parameter) {
    tensors.push_back({key + ".lora_embedding_A", factors.stack.a, without_stack});
    tensors.push_back({key + ".lora_embedding_B", factors.stack.b, transposed});
  } else {
    tensors.push_back({key + ".lora_A.weight", factors.stack.a, a_in_file_form});
    tensors.push_back({key + ".lora_B.weight", factors.stack.b, b_in_file_form});
  }
  if (factors.bias.defined()) tensors.push_back({key + ".lora_B.bias", factors.bias, as_it_is});
  if (factors.magnitude.defined()) tensors.push_back({key + ".lora_magnitude_vector", factors.magnitude, as_it_is});
}

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
    tensors.push_back({kPrefix + rows.module + ".token_adapter.trainable_tokens_delta", own->second.delta, as_it_is});
  }
  for (const Overlay& overlay : impl.overlays) {
    const auto own = overlay.adapters.find(entry.id);
    if (own == overlay.adapters.end()) continue;
    const auto suffix = overlay.suffix.find(entry.id);
    const std::string last = suffix == overlay.suffix.end() ? overlay.parameter : suffix->second;
    tensors.push_back({kPrefix + overlay.module + "." + last, own->second, as_it_is});
  }
  return tensors;
}

}  // namespace peft::nn
