#include "layout/decode/named_pair.h"

#include <fmt/format.h>

#include "base/text.h"
#include "layout/decode/decode.h"
#include "model/path.h"

namespace peft::layout {
namespace {

void require_fitting_sides(const Context& context, const NamedPair& pair) {
  if (pair.a.rows == pair.b.cols && pair.a.rows > 0 && pair.a.cols > 0 && pair.b.rows > 0) return;
  context.at(pair.a.tensor)
      .fail(ErrorCode::LO_SHAPE, {.problem = "the two sides of the pair do not fit each other",
                                  .expected = "one rank",
                                  .got = fmt::format("{} and {}", shape_text(context.tensor(pair.a.tensor).shape),
                                                     shape_text(context.tensor(pair.b.tensor).shape))});
}

// The model's number of experts counts; one that was taken from names is the file's.
void require_all_experts(const Context& context, const NamedPair& pair, const Experts& experts) {
  if (experts.num_experts == 0 || context.model.num_experts_assumed || experts.num_experts == pair.experts) return;
  context.at(pair.a.tensor)
      .fail(ErrorCode::LO_EXPERT, {.problem = "the stack does not hold the model's experts",
                                   .expected = fmt::format("{} experts", experts.num_experts),
                                   .got = fmt::format("{} experts", pair.experts),
                                   .hint = "is this the right base model?"});
}

[[noreturn]] void need_model(const Context& context, const NamedPair& pair) {
  std::string notes;
  for (const auto& note : context.model.notes) notes += (notes.empty() ? "" : "; ") + note;
  context.at(pair.a.tensor)
      .fail(ErrorCode::MD_NEEDED, {.problem = "this pair holds all experts of a layer, and the model is not known",
                                   .expected = "--base with the model, or --family with its type",
                                   .got = notes});
}

void add_stack(Context& context, const Slot& slot, const NamedPair& pair) {
  const Experts* experts = experts_at(context.model, pair.module);
  if (experts == nullptr) {
    if (!context.model.v4 && !context.model.v5) need_model(context, pair);
    return context.leave_out(slot, ErrorCode::LO_TARGET, "the model has no experts " + pair.module);
  }
  require_all_experts(context, pair, *experts);
  context.reading.has_experts = true;
  context.reading.factors.expert_counts.push_back({experts_module(*experts), pair.experts});
  Model::Located located{experts, 0, pair.projection, nullptr, {}};
  Pair one{pair.a, pair.b, pair.a.rows, pair.a.cols, pair.b.rows};
  for (; located.expert < pair.experts; ++located.expert) {
    add_expert(context, slot, located, one, pair.scale);
    one.a.offset += pair.a_step, one.b.offset += pair.b_step;
  }
}

}  // namespace

const Experts* experts_at(const Model& model, const std::string& module) {
  for (const Experts& experts : model.experts) {
    if (experts.v4_module == module || experts.v5_module == module) return &experts;
  }
  const auto numbers = model::path_key(module).numbers;
  const Experts* found = nullptr;
  for (const Experts& experts : model.experts) {
    if (numbers.empty() || !numbers.front().plain || numbers.front().value != experts.layer) continue;
    if (found != nullptr) return nullptr;
    found = &experts;
  }
  return found;
}

void add_pair(Context& context, const NamedPair& pair) {
  require_readable(context, pair.a.tensor);
  require_readable(context, pair.b.tensor);
  require_fitting_sides(context, pair);
  const Slot slot{pair.module, 0, pair.embedding, pair.a.tensor, pair.b.tensor};
  if (pair.experts > 0) return add_stack(context, slot, pair);
  add_dense(context, slot, {pair.a, pair.b, pair.a.rows, pair.a.cols, pair.b.rows}, pair.scale);
}

void add_module_names(const NamedPair& pair, const ProjectionNames* projection_names, std::vector<std::string>& names) {
  if (pair.experts == 0 || projection_names == nullptr) {
    names.push_back(pair.module);
    return;
  }
  for (const std::int64_t expert : {std::int64_t{0}, pair.experts - 1})
    names.push_back(fmt::format("{}.{}.{}", pair.module, expert, projection_names->of(pair.projection)));
}

}  // namespace peft::layout
