#include "nn/lora/site.h"

#include <ATen/ATen.h>

namespace peft::nn {

std::int64_t Site::num_experts() const { return kind == SiteKind::experts ? weight->size(0) : 1; }

std::int64_t Site::in() const {
  switch (kind) {
    case SiteKind::experts:
      return weight->size(in_out ? 1 : 2);
    case SiteKind::embedding:
      return weight->size(by_parameter ? 1 : 0);
    default:
      return weight->size(1);
  }
}

std::int64_t Site::out() const {
  switch (kind) {
    case SiteKind::experts:
      return weight->size(in_out ? 2 : 1);
    case SiteKind::embedding:
      return weight->size(by_parameter ? 0 : 1);
    default:
      return weight->size(0);
  }
}

std::string Site::class_name() const {
  if (by_parameter) return "lora.ParamWrapper";
  return kind == SiteKind::embedding ? "lora.Embedding" : "lora.Linear";
}

at::Tensor a_in_file_form(const at::Tensor& a) { return a.flatten(0, 1); }
at::Tensor b_in_file_form(const at::Tensor& b) { return b.permute({2, 1, 0}).flatten(1, 2); }

at::Tensor a_from_file_form(const at::Tensor& a, std::int64_t experts) {
  return a.unflatten(0, {experts, a.size(0) / experts}).contiguous();
}
at::Tensor b_from_file_form(const at::Tensor& b, std::int64_t experts) {
  return b.unflatten(1, {b.size(1) / experts, experts}).permute({2, 1, 0}).contiguous();
}

at::Tensor delta_weight(const Site& site, const SiteFactors& factors) {
  // [E, out, in]; an embedding's factors belong to its transpose [dim, vocabulary].
  at::Tensor delta = at::bmm(factors.stack.b.transpose(1, 2), factors.stack.a).mul_(factors.stack.scale);
  if (site.kind == SiteKind::experts) return site.in_out ? delta.transpose(1, 2) : delta;
  delta = delta.squeeze(0);
  return site.kind == SiteKind::embedding && !site.by_parameter ? delta.t() : delta;
}

}  // namespace peft::nn
