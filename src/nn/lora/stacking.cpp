#include "nn/lora/stacking.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "layout/encode/stack.h"
#include "nn/lora/file_tensor.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

bool share_a(const TensorFile& file, const ExpertPairs& pairs) {
  if (pairs.parts.size() != 2) return false;
  for (std::size_t e = 0; e < pairs.parts[0].size(); ++e) {
    const Factor *gate = pairs.parts[0][e], *up = pairs.parts[1][e];
    if (gate == nullptr && up == nullptr) continue;
    if (gate == nullptr || up == nullptr) return false;
    if (gate->a != up->a && !layout::same_values(file, gate->a, up->a)) return false;
  }
  return true;
}

std::int64_t largest_rank(const std::vector<const Factor*>& factors) {
  std::int64_t rank = 0;
  for (const Factor* factor : factors) rank = std::max(rank, factor == nullptr ? 0 : factor->rank);
  return rank;
}

// A fused file says what the rank is, even where the last components of all experts are zero.
std::int64_t stored_rank(const TensorFile& file, const Factor& factor, std::int64_t experts) {
  std::int64_t elements = 1;
  for (const std::int64_t d : file.tensors()[factor.a.tensor].shape) elements *= d;
  return factor.in == 0 || experts == 0 ? 0 : elements / (experts * factor.in);
}

void require_shape(const TensorFile& file, const Site& site, const Factor& factor, std::int64_t out) {
  if (factor.in == site.in() && factor.out == out) return;
  throw Error(ErrorCode::LO_SHAPE,
              {.file = file.path(),
               .tensor = describe(factor.site),
               .problem = "the factors do not fit the base model's weight",
               .expected = fmt::format("in {}, out {} ({} of the base)", site.in(), out, site.name()),
               .got = fmt::format("in {}, out {}", factor.in, factor.out),
               .hint = "is this the right base model for the adapter?"});
}

}  // namespace

ExpertPairs pairs_of(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts) {
  ExpertPairs pairs;
  const std::size_t parts = std::max<std::size_t>(1, parameter.projections.size());
  pairs.parts.assign(parts, std::vector<const Factor*>(static_cast<std::size_t>(experts), nullptr));
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.expert >= experts) continue;
    for (std::size_t p = 0; p < parts; ++p) {
      const bool mine = parameter.projections.empty()
                            ? factor.site.parameter == parameter.name
                            : factor.site.parameter.empty() && factor.site.projection == parameter.projections[p];
      if (!mine) continue;
      pairs.parts[p][static_cast<std::size_t>(factor.site.expert)] = &factor;
      pairs.all.push_back(&factor);
    }
  }
  return pairs;
}

SiteFactors stack_pairs(const TensorFile& file, const Site& site, const ExpertsForm::Fused& parameter,
                        const ExpertPairs& pairs, bool fused_layout) {
  const auto type = site.weight->scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t experts = site.num_experts();
  const auto parts = static_cast<std::int64_t>(pairs.parts.size());
  const std::int64_t out = site.out() / parts;
  const bool shared = share_a(file, pairs);
  SiteFactors factors;
  std::vector<std::int64_t> first(pairs.parts.size(), 0);
  std::int64_t rank = 0;
  for (std::size_t p = 0; p < pairs.parts.size(); ++p) {
    const std::int64_t own = largest_rank(pairs.parts[p]);
    first[p] = shared ? 0 : rank;
    rank = shared ? std::max(rank, own) : rank + own;
  }
  if (parts == 2 && !shared) factors.split = first[1];
  if (fused_layout) rank = std::max(rank, stored_rank(file, *pairs.all.front(), experts));
  factors.stack.scale = layout::common_scale(pairs.all);
  Tensor a = at::zeros({experts, rank, site.in()}, type), b = at::zeros({experts, rank, site.out()}, type);
  for (std::size_t p = 0; p < pairs.parts.size(); ++p) {
    for (std::size_t e = 0; e < pairs.parts[p].size(); ++e) {
      const Factor* factor = pairs.parts[p][e];
      if (factor == nullptr) continue;
      require_shape(file, site, *factor, out);
      const auto expert = static_cast<std::int64_t>(e);
      a.select(0, expert).narrow(0, first[p], factor->rank).copy_(read_view(file, factor->a, type));
      Tensor values = read_view(file, factor->b.transposed(), type);
      const double gain = layout::folded_gain(*factor, factors.stack.scale);
      if (gain != 1) values = (values.to(at::kDouble) * gain).to(type);
      const auto part = static_cast<std::int64_t>(p);
      Tensor rows = b.select(0, expert).narrow(0, first[p], factor->rank);
      rows = parameter.interleaved ? rows.slice(1, part, site.out(), parts) : rows.narrow(1, part * out, out);
      rows.copy_(values);
    }
  }
  factors.stack.a = a.to(site.weight->device());
  factors.stack.b = b.to(site.weight->device());
  return factors;
}

}  // namespace peft::nn
