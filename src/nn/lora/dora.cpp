#include "nn/lora/dora.h"

#include <ATen/ATen.h>

#include <array>

namespace peft::nn {

// Tensors count their changes; a pointer and a count tell whether norms are still right.
struct SiteFactors::NormCache {
  std::array<std::pair<const void*, std::uint32_t>, 3> made_from{};
  at::Tensor norms;
  std::vector<bool> known;  // of each expert
};

namespace {

using Stamp = std::pair<const void*, std::uint32_t>;

Stamp stamp(const at::Tensor& tensor) {
  return {tensor.unsafeGetTensorImpl(), tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version())};
}

// One matrix at a time, so that no more than one is ever built.
at::Tensor norms_of(const Site& site, const FactorStack& stack, std::int64_t expert) {
  at::Tensor weight = *site.weight;
  if (site.kind == SiteKind::experts) weight = weight.select(0, expert);
  const bool turned = site.kind == SiteKind::experts ? site.in_out : site.kind == SiteKind::embedding;
  if (turned) weight = weight.t();
  const at::Tensor delta = at::mm(stack.b.select(0, expert).t(), stack.a.select(0, expert));
  return at::linalg_vector_norm(weight.to(delta.scalar_type()) + delta.mul_(stack.scale), 2, at::IntArrayRef{1});
}

}  // namespace

at::Tensor row_norms(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit) {
  const at::NoGradGuard no_grad;
  const FactorStack& stack = factors.stack;
  const std::int64_t experts = stack.experts();
  if (!factors.norms) factors.norms = std::make_shared<SiteFactors::NormCache>();
  auto& cache = *factors.norms;
  const std::array<Stamp, 3> now = {stamp(*site.weight), stamp(stack.a), stamp(stack.b)};
  if (!cache.norms.defined() || cache.made_from != now || site.weight->is_inference()) {
    cache.made_from = now;
    cache.norms = at::ones({experts, stack.out()}, stack.a.options().requires_grad(false));
    cache.known.assign(static_cast<std::size_t>(experts), false);
  }
  const auto make = [&](std::int64_t expert) {
    if (cache.known[static_cast<std::size_t>(expert)]) return;
    cache.known[static_cast<std::size_t>(expert)] = true;
    cache.norms.select(0, expert).copy_(norms_of(site, stack, expert));
  };
  if (hit != nullptr) {
    for (const std::int64_t expert : *hit) make(expert);
  } else {
    for (std::int64_t expert = 0; expert < experts; ++expert) make(expert);
  }
  return site.kind == SiteKind::experts ? cache.norms : cache.norms.squeeze(0);
}

at::Tensor gains(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit) {
  // The cache may be filled up later, so the graph must not hold it.
  at::Tensor norms = row_norms(site, factors, hit);
  if (factors.magnitude.requires_grad() && at::GradMode::is_enabled()) norms = norms.clone();
  return factors.magnitude / norms;
}

}  // namespace peft::nn
