#include "layout/stacked.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/text.h"
#include "layout/encode/stack.h"
#include "layout/encode/uniform.h"
#include "layout/keys.h"
#include "model/path.h"

namespace peft::layout {
namespace {

// ---- Names

bool has_gate(const Experts& experts) {
  const auto is_gate = [](Projection projection) { return projection == Projection::gate; };
  const auto& fused = experts.form->v5.empty() ? experts.form->v4 : experts.form->v5;
  return std::ranges::any_of(experts.form->per_expert, is_gate, &ExpertsForm::PerExpert::projection) ||
         std::ranges::any_of(fused, [&](const auto& p) { return std::ranges::any_of(p.projections, is_gate); });
}

constexpr std::array<std::pair<std::string_view, Projection>, 3> kProjections{
    {{"w1", Projection::gate}, {"w2", Projection::down}, {"w3", Projection::up}}};

// A part of a module's path that Tinker calls otherwise, in this model type or in all (""). Source:
// golden/consumers/tinker/gpt_oss, tinker_cookbook/weights/_adapter.py.
struct Renaming {
  std::string_view model_type, transformers, tinker;
};
constexpr Renaming kRenamings[] = {{"gpt_oss", ".self_attn.", ".attn."}, {"", "lm_head", "model.unembed_tokens"}};

std::string renamed(const Model& model, std::string_view module, std::string_view Renaming::*from,
                    std::string_view Renaming::*to) {
  std::string name(module);
  for (const Renaming& row : kRenamings) {
    if (row.model_type.empty() && name == row.*from) name = row.*to;
    if (!row.model_type.empty() && row.model_type == model.model_type)
      name = model::replace_all(std::move(name), row.*from, row.*to);
  }
  return name;
}

// The projection by its name in the file. Two-layer experts have no gate: their first matrix is up.
Projection projection_in(const Experts* experts, std::string_view name) {
  const Projection projection = stacked_projection(name);
  return projection == Projection::gate && experts != nullptr && !has_gate(*experts) ? Projection::up : projection;
}

std::string_view stacked_name(const Experts& experts, Projection projection) {
  if (projection == Projection::up && !has_gate(experts)) projection = Projection::gate;
  for (const auto& [stacked, named] : kProjections) {
    if (named == projection) return stacked;
  }
  return {};
}

// ---- Reading

// How many experts the stack has: those of a side that is not shared, else the model's.
std::int64_t count_experts(const Context& context, const Slot& slot, std::int64_t in_a, std::int64_t in_b) {
  if (in_a == in_b && in_a > 1) return in_a;
  if (in_a != in_b && std::min(in_a, in_b) == 1) return std::max(in_a, in_b);
  if (in_a != in_b) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE, {.problem = "the two sides hold different numbers of experts",
                                                  .expected = "the same number, or 1 for a side that all share",
                                                  .got = fmt::format("{} and {}", in_a, in_b)});
  }
  for (const Experts& experts : context.model.experts) {
    if (experts.num_experts > 0) return experts.num_experts;
  }
  context.at(slot.a).fail(ErrorCode::LO_EXPERT,
                          {.problem = "all experts share both sides, so the file does not say how many there are",
                           .hint = "--num-experts, or --base with the model"});
}

// Matrix of the first expert in a tensor [E or 1, rows, cols].
View first_matrix(std::uint32_t index, const TensorInfo& tensor) {
  return {0, index, 0, tensor.shape[1], tensor.shape[2], tensor.shape[2], 1};
}

// ---- Writing

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
  const std::string key = std::string(kPrefix) + experts_module(*stack.experts) + "." +
                          std::string(stacked_name(*stack.experts, stack.projection));
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
  out.step(fmt::format("{} of {} experts stacked{}", stacked_name(*stack.experts, stack.projection), experts, shared));
}

void add_dense(UniformFile& out, const Factor& factor) {
  const std::string key =
      std::string(kPrefix) + renamed(out.model(), factor.site.module, &Renaming::transformers, &Renaming::tinker);
  const bool embedding = factor.kind == FactorKind::embedding;
  out.add(key + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), {out.rank(), factor.in}, out.rank(), factor.in,
          {out.block_of_a(factor, 0)});
  out.add(key + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), {factor.out, out.rank()}, factor.out, out.rank(),
          {out.block_of_b(factor, 0)});
}

}  // namespace

Projection stacked_projection(std::string_view name) {
  for (const auto& [stacked, projection] : kProjections) {
    if (stacked == name) return projection;
  }
  return Projection::none;
}

std::string from_tinker(const Model& model, std::string_view module) {
  return renamed(model, module, &Renaming::tinker, &Renaming::transformers);
}

bool is_empty_stack(const Adapter& adapter, const Slot& slot) {
  const auto tensors = adapter.weights->tensors();
  return stacked_projection(model::leaf(slot.module)) != Projection::none &&
         model::leaf(model::parent(slot.module)).ends_with("experts") && tensors[slot.a].bytes() == 0 &&
         tensors[slot.b].bytes() == 0;
}

bool is_stacked(const Adapter& adapter, const Slot& slot) {
  const auto tensors = adapter.weights->tensors();
  return slot.depth == 0 && !slot.embedding && stacked_projection(model::leaf(slot.module)) != Projection::none &&
         model::leaf(model::parent(slot.module)).ends_with("experts") && tensors[slot.a].shape.size() == 3 &&
         tensors[slot.b].shape.size() == 3;
}

NamedPair stacked_pair(const Context& context, const Slot& slot) {
  const TensorInfo &a = context.tensor(slot.a), &b = context.tensor(slot.b);
  if (a.shape[0] == 0 || b.shape[0] == 0) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE,
                            {.problem = "the stack is empty",
                             .expected = "A [E or 1, r, in], B [E or 1, out, r]",
                             .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
  }
  NamedPair pair;
  pair.module = std::string(model::parent(slot.module));
  pair.projection = projection_in(experts_at(context.model, pair.module), model::leaf(slot.module));
  pair.experts = count_experts(context, slot, a.shape[0], b.shape[0]);
  pair.a = first_matrix(slot.a, a), pair.b = first_matrix(slot.b, b);
  pair.a_step = a.shape[0] == 1 ? 0 : pair.a.rows * pair.a.cols;
  pair.b_step = b.shape[0] == 1 ? 0 : pair.b.rows * pair.b.cols;
  pair.scale = scale_of(context, slot.a, pair.a.rows, std::string(slot.module)).scale;
  return pair;
}

Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options) {
  UniformFile out(factors, model, file, options);
  for (const Factor* factor : out.dense()) add_dense(out, *factor);
  for (const ProjectionStack& stack : out.stacks()) add_stack(out, stack);
  return out.finish();
}

}  // namespace peft::layout
