#include "nn/lora/sites/site.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "config/peft_rules.h"
#include "peft/error.h"

namespace peft::nn {

// Tensors count their changes: a pointer and a count show whether the norms are still valid.
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

// One expert at a time, so that only one matrix is in memory.
at::Tensor norms_of(const Site& site, const FactorStack& stack, std::int64_t expert) {
  at::Tensor weight = *site.weight;
  if (site.kind == SiteKind::experts) weight = weight.select(0, expert);
  if (site.base_is_in_out()) weight = weight.t();
  const at::Tensor delta = at::mm(stack.b.select(0, expert).t(), stack.a.select(0, expert));
  return at::linalg_vector_norm(weight.to(delta.scalar_type()) + delta.mul_(stack.scale), 2, at::IntArrayRef{1});
}

using config::LoraInit;

constexpr int kMaxIterations = 1000;

Tensor uniform(at::IntArrayRef shape, double bound, at::Generator& generator) {
  return at::empty(shape, at::kFloat).uniform_(-bound, bound, generator);
}
Tensor normal(at::IntArrayRef shape, double deviation, at::Generator& generator) {
  return at::empty(shape, at::kFloat).normal_(0, deviation, generator);
}

double one_over_root(std::int64_t n) { return 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, n))); }

// The first values of nn.Linear, which PEFT keeps when init_lora_weights is false.
void random_both(const Site& site, FactorStack& stack, at::Generator& generator) {
  if (site.kind == SiteKind::embedding && !site.by_parameter) {
    stack.a.copy_(normal(stack.a.sizes(), 1, generator));
    stack.b.copy_(normal(stack.b.sizes(), 1, generator));
    return;
  }
  stack.a.copy_(uniform(stack.a.sizes(), one_over_root(stack.in()), generator));
  // lora_B of stacked experts is one Linear that reads rank * experts values.
  stack.b.copy_(uniform(stack.b.sizes(), one_over_root(stack.rank() * stack.experts()), generator));
}

void zero_start(const Site& site, FactorStack& stack, bool gaussian, at::Generator& generator) {
  if (site.kind == SiteKind::embedding && !site.by_parameter) {
    stack.a.zero_();
    stack.b.copy_(normal(stack.b.sizes(), 1, generator));
    return;
  }
  if (gaussian) {
    stack.a.copy_(normal(stack.a.sizes(), 1 / static_cast<double>(stack.rank()), generator));
  } else {
    stack.a.copy_(uniform(stack.a.sizes(), one_over_root(stack.in()), generator));
  }
  stack.b.zero_();
}

// Rows of one orthogonal matrix, the even ones for A and the odd ones for B: their product is zero, neither factor is.
void orthogonal(FactorStack& stack, at::Generator& generator) {
  const std::int64_t rank = stack.rank();
  const Tensor q = std::get<0>(at::linalg_qr(normal({rank, rank}, 1, generator)));
  const Tensor even = q.slice(0, 0, rank, 2), odd = q.slice(0, 1, rank, 2);
  const Tensor a = at::mm(normal({stack.in(), rank / 2}, 1, generator), even).t() / 10.0;
  const Tensor b = at::mm(normal({stack.out(), rank / 2}, 1, generator), odd) / 10.0;
  stack.a.select(0, 0).copy_(a);
  stack.b.select(0, 0).copy_(b.t());
}

struct Svd {
  Tensor u, s, vt;
};

// Randomised range finder with power iterations, for large weights (pissa_niter_N).
Svd low_rank_svd(const Tensor& weight, std::int64_t rank, int iterations, at::Generator& generator) {
  const std::int64_t columns = std::min({weight.size(0), weight.size(1), rank});
  Tensor q = at::mm(weight, normal({weight.size(1), columns}, 1, generator).to(weight.device()));
  q = std::get<0>(at::linalg_qr(q));
  for (int i = 0; i < iterations; ++i) {
    q = std::get<0>(at::linalg_qr(at::mm(weight.t(), q)));
    q = std::get<0>(at::linalg_qr(at::mm(weight, q)));
  }
  const auto [u, s, vt] = at::linalg_svd(at::mm(q.t(), weight), false);
  return {at::mm(q, u), s, vt};
}

void pissa(const Tensor& weight, FactorStack& stack, const std::string& init, at::Generator& generator) {
  Svd svd;
  if (const auto steps = config::pissa_iterations(init)) {
    svd = low_rank_svd(weight, stack.rank(), *steps, generator);
  } else {
    const auto [u, s, vt] = at::linalg_svd(weight, false);
    svd = {u, s, vt};
  }
  const std::int64_t rank = stack.rank();
  const Tensor root = (svd.s.slice(0, 0, rank) / stack.scale).sqrt();
  stack.a.select(0, 0).copy_(root.unsqueeze(1) * svd.vt.slice(0, 0, rank));
  stack.b.select(0, 0).copy_((svd.u.slice(1, 0, rank) * root.unsqueeze(0)).t());
}

void olora(const Tensor& weight, FactorStack& stack) {
  const auto [q, r] = at::linalg_qr(weight);
  stack.a.select(0, 0).copy_(r.slice(0, 0, stack.rank()));
  stack.b.select(0, 0).copy_(q.slice(1, 0, stack.rank()).t());
}

// PiSSA and OLoRA subtract their start from the base.
void from_weight(Site& site, FactorStack& stack, const std::string& init, at::Generator& generator) {
  const std::int64_t limit = std::min(stack.in(), stack.out());
  if (stack.rank() > limit) {
    peft::at({}, site.target())
        .fail(ErrorCode::CF_RANK, {.problem = "the rank is larger than the weight has dimensions",
                                   .expected = fmt::format("at most {} for init_lora_weights = {}", limit, init),
                                   .got = std::to_string(stack.rank())});
  }
  const Tensor weight = site.weight->to(at::kFloat);
  if (config::lora_init(init) == LoraInit::olora)
    olora(weight, stack);
  else
    pissa(weight, stack, init, generator);
  const Tensor start = at::mm(stack.b.select(0, 0).t(), stack.a.select(0, 0)) * stack.scale;
  site.weight->copy_(weight - start.to(weight.scalar_type()));
}

}  // namespace

std::int64_t Site::num_experts() const { return kind == SiteKind::experts ? weight->size(0) : 1; }

bool Site::base_is_in_out() const { return kind == SiteKind::experts ? in_out : kind == SiteKind::embedding; }

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

at::Tensor delta_weight(const Site& site, const SiteFactors& factors) {
  // [E, out, in]; an embedding's factors belong to its transpose [dim, vocabulary].
  at::Tensor delta = at::bmm(factors.stack.b.transpose(1, 2), factors.stack.a).mul_(factors.stack.scale);
  if (site.kind == SiteKind::experts) return site.in_out ? delta.transpose(1, 2) : delta;
  delta = delta.squeeze(0);
  return site.kind == SiteKind::embedding && !site.by_parameter ? delta.t() : delta;
}

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
  // Later calls may write to the cache, so the graph gets a copy.
  at::Tensor norms = row_norms(site, factors, hit);
  if (factors.magnitude.requires_grad() && at::GradMode::is_enabled()) norms = norms.clone();
  return factors.magnitude / norms;
}

bool starts_from_weight(const std::string& init) {
  const auto kind = config::lora_init(init);
  return kind == LoraInit::pissa || kind == LoraInit::olora;
}

void require_known_init(const AdapterConfig& config) {
  const std::string& init = config.init_lora_weights;
  if (config::pissa_iterations(init).value_or(0) > kMaxIterations) {
    peft::at(config.file, "init_lora_weights")
        .fail(ErrorCode::CF_VALUE, {.problem = "too many iterations",
                                    .expected = fmt::format("pissa_niter_N with N from 0 to {}", kMaxIterations),
                                    .got = init});
  }
  using enum LoraInit;
  for (const LoraInit known : {standard, random, gaussian, orthogonal, pissa, olora}) {
    if (config::lora_init(init) == known) return;
  }
  peft::at(config.file, "init_lora_weights")
      .fail(ErrorCode::CF_UNSUP,
            {.problem = "this initialisation is not implemented",
             .expected = "true, false, gaussian, orthogonal, pissa, pissa_niter_N or olora",
             .got = init,
             .hint = "those that look at data (eva, corda, lora_ga) or quantise (loftq) need PEFT itself"});
}

void initialise(Site& site, SiteFactors& factors, const std::string& init, at::Generator& generator) {
  const at::NoGradGuard no_grad;
  FactorStack& stack = factors.stack;
  if (stack.a.is_meta()) return;
  const bool dense = site.kind == SiteKind::linear && !site.by_parameter;
  const LoraInit kind = config::lora_init(init).value_or(LoraInit::standard);
  if ((starts_from_weight(init) || kind == LoraInit::orthogonal) && site.by_parameter) {
    peft::at({}, site.target())
        .fail(ErrorCode::CF_UNSUP,
              {.problem = "init_lora_weights = " + init + " needs a Linear: PEFT fails on parameters",
               .expected = "true, false or gaussian where target_parameters are named",
               .got = init});
  }
  if (kind == LoraInit::random)
    random_both(site, stack, generator);
  else if (starts_from_weight(init) && dense)  // embeddings start as ever
    from_weight(site, stack, init, generator);
  else if (kind == LoraInit::orthogonal && dense)
    orthogonal(stack, generator);
  else
    zero_start(site, stack, kind == LoraInit::gaussian, generator);
  if (factors.bias.defined()) {
    if (kind == LoraInit::random)
      factors.bias.copy_(uniform(factors.bias.sizes(), one_over_root(stack.rank()), generator));
    else
      factors.bias.zero_();
  }
}

}  // namespace peft::nn
