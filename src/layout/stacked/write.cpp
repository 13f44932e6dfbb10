#include "layout/stacked/write.h"

#include <fmt/format.h>

#include <algorithm>

#include "layout/encode/stack.h"
#include "layout/encode/uniform.h"
#include "layout/keys.h"
#include "layout/stacked/names.h"

namespace peft::layout {
namespace {

// Whether all experts have the same values on this side: then it is written once.
bool is_shared(const UniformFile& out, const ProjectionStack& stack, View Factor::*side) {
  const Factor* first = stack.factors.front();
  if (first == nullptr || stack.factors.size() < 2) return false;
  return std::ranges::all_of(stack.factors, [&](const Factor* factor) {
    return factor != nullptr && factor->rank == first->rank && factor->scale == first->scale &&
           same_values(out.file(), first->*side, factor->*side);
  });
}

void add_stack(UniformFile& out, const ProjectionStack& stack) {
  const std::string key =
      std::string(kPrefix) + experts_module(*stack.experts) + "." + std::string(stacked_name(stack.projection));
  const std::int64_t rank = out.rank();
  const bool a_shared = is_shared(out, stack, &Factor::a);
  // One side has to show how many experts there are.
  const bool b_shared = !a_shared && is_shared(out, stack, &Factor::b);
  const auto experts = static_cast<std::int64_t>(stack.factors.size());
  std::vector<Block> a, b;
  for (std::int64_t e = 0; e < experts; ++e) {
    const Factor* factor = stack.factors[static_cast<std::size_t>(e)];
    if (factor == nullptr) continue;
    if (e == 0 || !a_shared) a.push_back(out.block_of_a(*factor, e * rank));
    if (e == 0 || !b_shared) b.push_back(out.block_of_b(*factor, e * stack.out));
  }
  const std::int64_t in_a = a_shared ? 1 : experts, in_b = b_shared ? 1 : experts;
  out.add(key + ".lora_A.weight", {in_a, rank, stack.in}, in_a * rank, stack.in, std::move(a));
  out.add(key + ".lora_B.weight", {in_b, stack.out, rank}, in_b * stack.out, rank, std::move(b));
  const std::string_view shared = a_shared ? ", lora_A shared" : b_shared ? ", lora_B shared" : "";
  out.step(fmt::format("{} of {} experts stacked{}", stacked_name(stack.projection), experts, shared));
}

void add_dense(UniformFile& out, const Factor& factor) {
  const std::string key = std::string(kPrefix) + to_tinker(out.model(), factor.site.module);
  const bool embedding = factor.kind == FactorKind::embedding;
  out.add(key + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), {out.rank(), factor.in}, out.rank(), factor.in,
          {out.block_of_a(factor, 0)});
  out.add(key + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), {factor.out, out.rank()}, factor.out, out.rank(),
          {out.block_of_b(factor, 0)});
}

}  // namespace

Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options) {
  UniformFile out(factors, model, file, options);
  for (const Factor* factor : out.dense()) add_dense(out, *factor);
  for (const ProjectionStack& stack : out.stacks()) add_stack(out, stack);
  return out.finish();
}

}  // namespace peft::layout
