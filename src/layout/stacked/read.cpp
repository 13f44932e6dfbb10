#include "layout/stacked/read.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "layout/stacked/names.h"
#include "model/path.h"

namespace peft::layout {
namespace {

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

}  // namespace

bool is_stacked(const Adapter& adapter, const Slot& slot) {
  const auto tensors = adapter.weights->tensors();
  return slot.depth == 0 && !slot.embedding && stacked_projection(model::leaf(slot.module)) != Projection::none &&
         model::leaf(model::parent(slot.module)).ends_with("experts") && tensors[slot.a].shape.size() == 3 &&
         tensors[slot.b].shape.size() == 3;
}

std::string_view stacked_module(const Slot& slot) { return model::parent(slot.module); }

NamedPair stacked_pair(const Context& context, const Slot& slot) {
  const TensorInfo &a = context.tensor(slot.a), &b = context.tensor(slot.b);
  if (a.shape[0] == 0 || b.shape[0] == 0) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE,
                            {.problem = "the stack is empty",
                             .expected = "A [E or 1, r, in], B [E or 1, out, r]",
                             .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
  }
  NamedPair pair;
  pair.module = std::string(stacked_module(slot));
  pair.projection = stacked_projection(model::leaf(slot.module));
  pair.experts = count_experts(context, slot, a.shape[0], b.shape[0]);
  pair.a = first_matrix(slot.a, a), pair.b = first_matrix(slot.b, b);
  pair.a_step = a.shape[0] == 1 ? 0 : pair.a.rows * pair.a.cols;
  pair.b_step = b.shape[0] == 1 ? 0 : pair.b.rows * pair.b.cols;
  pair.scale = scale_of(context, slot.a, pair.a.rows, std::string(slot.module)).scale;
  return pair;
}

}  // namespace peft::layout
