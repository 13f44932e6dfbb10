#include "nn/lora/init.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "config/peft_rules.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

using at::Tensor;
using config::LoraInit;

constexpr int kMaxIterations = 1000;

Tensor uniform(at::IntArrayRef shape, double bound, at::Generator& generator) {
  return at::empty(shape, at::kFloat).uniform_(-bound, bound, generator);
}
Tensor normal(at::IntArrayRef shape, double deviation, at::Generator& generator) {
  return at::empty(shape, at::kFloat).normal_(0, deviation, generator);
}

double one_over_root(std::int64_t n) { return 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, n))); }

// What nn.Linear starts with, and PEFT leaves when init_lora_weights is false.
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

// PiSSA and OLoRA take their start out of the base.
void from_weight(Site& site, FactorStack& stack, const std::string& init, at::Generator& generator) {
  const std::int64_t limit = std::min(stack.in(), stack.out());
  if (stack.rank() > limit) {
    throw Error(ErrorCode::CF_RANK, {.tensor = site.target(),
                                     .problem = "the rank is larger than the weight has dimensions",
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

bool starts_from_weight(const std::string& init) {
  const auto kind = config::lora_init(init);
  return kind == LoraInit::pissa || kind == LoraInit::olora;
}

void require_known_init(const AdapterConfig& config) {
  const std::string& init = config.init_lora_weights;
  if (config::pissa_iterations(init).value_or(0) > kMaxIterations) {
    throw Error(ErrorCode::CF_VALUE, {.file = config.file,
                                      .tensor = "init_lora_weights",
                                      .problem = "too many iterations",
                                      .expected = fmt::format("pissa_niter_N with N from 0 to {}", kMaxIterations),
                                      .got = init});
  }
  using enum LoraInit;
  for (const LoraInit known : {standard, random, gaussian, orthogonal, pissa, olora}) {
    if (config::lora_init(init) == known) return;
  }
  throw Error(ErrorCode::CF_UNSUP,
              {.file = config.file,
               .tensor = "init_lora_weights",
               .problem = "this initialisation is not implemented",
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
    throw Error(ErrorCode::CF_UNSUP,
                {.tensor = site.target(),
                 .problem = "init_lora_weights = " + init + " needs a Linear: PEFT fails on parameters",
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
