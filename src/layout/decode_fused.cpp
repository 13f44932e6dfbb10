#include <algorithm>

#include "base/system.h"
#include "layout/components.h"
#include "layout/decode.h"
#include "layout/fused_forms.h"
#include "layout/orientation.h"

namespace peft::layout {
namespace {

// One expert's pair, natural: A [rank, in], B [out, rank], as views into the stacked tensors.
struct ExpertPair {
  View a, b;
};
ExpertPair expert_pair(const FusedSlot& slot, const FusedForm& form, std::int64_t expert) {
  const std::int64_t columns = slot.rank * slot.num_experts;
  const bool rank_major = form.packing == BPacking::rank_major;
  const View a{0, slot.slot->a, expert * slot.rank * slot.a_width, slot.rank, slot.a_width, slot.a_width, 1};
  const View b{0,         slot.slot->b, rank_major ? expert : expert * slot.rank, slot.b_width,
               slot.rank, columns,      rank_major ? slot.num_experts : 1};
  if (form.orientation == Orientation::natural) return {a, b};
  return {b.transposed(), a.transposed()};
}

// The rows of B that belong to one projection of a fused parameter.
View rows_of(const View& b, const ExpertsForm::Fused& parameter, std::size_t which) {
  const auto parts = static_cast<std::int64_t>(parameter.projections.size());
  const auto index = static_cast<std::int64_t>(which);
  if (parts == 1) return b;
  const std::int64_t rows = b.rows / parts;
  return parameter.interleaved ? b.row_range(index, rows, parts) : b.row_range(index * rows, rows);
}

void add_factor(Context& context, const FusedSlot& slot, const ExpertPair& pair, std::int64_t expert, std::size_t which,
                const ComponentRange& range) {
  if (range.count == 0) return;
  Factor factor;
  factor.site.module = experts_module(*slot.experts);
  factor.site.expert = expert;
  if (slot.parameter->projections.empty())
    factor.site.parameter = slot.parameter->name;
  else
    factor.site.projection = slot.parameter->projections[which];
  factor.a = pair.a.row_range(range.first, range.count);
  factor.b = rows_of(pair.b, *slot.parameter, which).col_range(range.first, range.count);
  factor.out = factor.b.rows, factor.in = factor.a.cols, factor.rank = range.count;
  factor.scale = slot.scale;
  context.reading.factors.factors.push_back(std::move(factor));
}

void decode_matrix(Context& context, const FusedSlot& slot) {
  const Pair pair = pair_of(context, *slot.slot);
  Factor factor;
  factor.site = {experts_module(*slot.experts), slot.parameter->name, -1, Projection::none};
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = slot.scale;
  factor.a = pair.a, factor.b = pair.b;
  context.reading.factors.factors.push_back(std::move(factor));
}

void check_stack(const Context& context, const FusedSlot& slot, const FusedForm& form) {
  if (slot.stacked() && slot.parameter->projections.size() == 2) {
    const std::int64_t out = form.orientation == Orientation::natural ? slot.b_width : slot.a_width;
    if (out % 2 != 0) {
      context.fail(ErrorCode::LO_SHAPE, slot.slot->b, "gate and up together have an odd number of rows", "2 I rows",
                   std::to_string(out));
    }
  }
}

void decode_stack(Context& context, const FusedSlot& slot, const FusedForm& form, const Components& components) {
  context.reading.factors.expert_counts.push_back({experts_module(*slot.experts), slot.num_experts});
  const std::size_t parts = std::max<std::size_t>(1, slot.parameter->projections.size());
  for (std::int64_t e = 0; e < slot.num_experts; ++e) {
    const ExpertPair pair = expert_pair(slot, form, e);
    for (std::size_t p = 0; p < parts; ++p) add_factor(context, slot, pair, e, p, components.range(e, p));
  }
}

}  // namespace

void decode_fused(Context& context, const std::vector<Slot>& slots, const std::vector<Model::Located>& located) {
  if (slots.empty()) return;
  const std::vector<FusedSlot> fused = assign_parameters(context, slots, located);
  const FusedForm form = decide_form(context, fused);
  context.reading.layout = form.layout;
  for (const FusedSlot& slot : fused) check_stack(context, slot, form);
  // Most of the work: it reads the factors.
  std::vector<Components> components(fused.size());
  parallel_for(fused.size(), thread_count(context.options.threads), [&](std::size_t i, int) {
    if (fused[i].stacked()) components[i] = find_components(context, fused[i], form);
  });
  for (std::size_t i = 0; i < fused.size(); ++i) {
    if (fused[i].stacked())
      decode_stack(context, fused[i], form, components[i]);
    else
      decode_matrix(context, fused[i]);
  }
}

}  // namespace peft::layout
