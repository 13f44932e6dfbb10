#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "layout/common_scale.h"
#include "layout/encoder.h"
#include "layout/fused_forms.h"
#include "layout/gate_up.h"
#include "layout/keys.h"
#include "layout/stack.h"

namespace peft::layout {
namespace {

// Puts natural blocks of one expert into the two tensors of a fused pair, whichever way round the layout has them.
class Placer {
 public:
  Placer(const Stack& stack, Orientation orientation, BPacking packing)
      : stack_(stack), natural_(orientation == Orientation::natural), rank_major_(packing == BPacking::rank_major) {}

  // `rank_at`: first of the fused components this block fills. `out_at`: first row of the natural B.
  void put_a(std::int64_t expert, std::int64_t rank_at, const View& view) {
    if (natural_)
      stacked.push_back({expert * stack_.rank + rank_at, 0, 1, view, 1.0});
    else
      columns.push_back({0, column(expert, rank_at), step(), view.transposed(), 1.0});
  }
  void put_b(std::int64_t expert, std::int64_t rank_at, std::int64_t out_at, const View& view, double scale) {
    if (natural_)
      columns.push_back({out_at, column(expert, rank_at), step(), view, scale});
    else
      stacked.push_back({expert * stack_.rank + rank_at, out_at, 1, view.transposed(), scale});
  }
  std::int64_t stacked_width() const { return natural_ ? stack_.dims.in : stack_.dims.out; }
  std::int64_t columns_height() const { return natural_ ? stack_.dims.out : stack_.dims.in; }

  std::vector<Block> stacked, columns;  // of lora_A and lora_B

 private:
  std::int64_t column(std::int64_t expert, std::int64_t rank_at) const {
    return rank_major_ ? rank_at * stack_.experts + expert : expert * stack_.rank + rank_at;
  }
  std::int64_t step() const { return rank_major_ ? stack_.experts : 1; }

  const Stack& stack_;
  bool natural_, rank_major_;
};

bool is_power_of_two(double ratio) {
  int exponent = 0;
  return std::frexp(std::abs(ratio), &exponent) == 0.5;
}

Exactness exactness_of(const Stack& stack) {
  Exactness worst = Exactness::bit_exact;
  std::size_t count = 0;
  for (const Factor* factor : all_of(stack)) {
    ++count;
    const double gain = folded_gain(*factor, stack.scale);
    if (gain != 1) worst = std::max(worst, is_power_of_two(gain) ? Exactness::value_exact : Exactness::rounded);
    if (factor->rank != stack.rank) worst = std::max(worst, Exactness::value_exact);
  }
  if (count != stack.parts.size() * static_cast<std::size_t>(stack.experts))
    worst = std::max(worst, Exactness::value_exact);
  return worst;
}

// Narrowest dtype that holds all values of both.
Dtype wider(Dtype a, Dtype b) {
  if (a == b) return a;
  return a == Dtype::f64 || b == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

void place(const Stack& stack, const ExpertsForm::Fused& parameter, Placer& placer) {
  for (std::int64_t e = 0; e < stack.experts; ++e) {
    const auto at = static_cast<std::size_t>(e);
    if (stack.shared_a) {
      const Factor *gate = stack.parts[0][at], *up = stack.parts[1][at];
      if (gate == nullptr) continue;
      placer.put_a(e, 0, gate->a);
      if (const auto joined = joined_b(*gate, *up, parameter.interleaved)) {
        placer.put_b(e, 0, 0, *joined, folded_gain(*gate, stack.scale));
      } else {
        placer.put_b(e, 0, 0, gate->b, folded_gain(*gate, stack.scale));
        placer.put_b(e, 0, gate->out, up->b, folded_gain(*up, stack.scale));
      }
      continue;
    }
    std::int64_t rank_at = 0, out_at = 0;
    for (std::size_t p = 0; p < stack.parts.size(); ++p) {
      if (const Factor* factor = stack.parts[p][at]) {
        placer.put_a(e, rank_at, factor->a);
        placer.put_b(e, rank_at, out_at, factor->b, folded_gain(*factor, stack.scale));
      }
      rank_at += stack.ranks[p];
      out_at += stack.out[p];
    }
  }
}

std::string describe_step(const ExpertsForm::Fused& parameter, const Stack& stack, Exactness exactness) {
  std::string ranks = std::to_string(stack.rank);
  if (stack.parts.size() == 2 && !stack.shared_a) {
    ranks = fmt::format("{} + {} -> {}, block-diagonal", stack.ranks[0], stack.ranks[1], stack.rank);
  } else if (stack.parts.size() == 2) {
    ranks += ", gate and up share A";
  }
  return fmt::format("{} of {} experts, rank {} ({})", parameter.name, stack.experts, ranks, name(exactness));
}

}  // namespace

std::int64_t Encoder::count_experts(const Experts& experts, Group group) const {
  std::int64_t count = experts.num_experts;
  if (const auto at = counts_.find(group.front().site.module); at != counts_.end()) count = std::max(count, at->second);
  if (count != 0 && !model_.num_experts_assumed) return count;
  for (const Factor& factor : group) count = std::max(count, factor.site.expert + 1);
  return count;
}

// Ranks, widths and the one scale of a fused pair.
void Encoder::measure(Stack& stack) const {
  const auto factors = all_of(stack);
  stack.scale = common_scale(factors);
  stack.shared_a = !options_.block_diagonal && shares_a(file_, stack);
  const Factor& first = *factors.front();
  stack.dims.in = first.in;
  for (const auto& part : stack.parts) {
    std::int64_t rank = 0;
    for (const Factor* factor : part) {
      if (factor == nullptr) continue;
      rank = std::max(rank, factor->rank);
      if (factor->in != first.in || factor->out != first.out) {
        no_form(describe(factor->site), "experts of one layer have different shapes", "is this one adapter?");
      }
    }
    stack.ranks.push_back(rank);
    stack.out.push_back(first.out);
    stack.dims.out += first.out;
    stack.rank = stack.shared_a ? std::max(stack.rank, rank) : stack.rank + rank;
  }
}

void Encoder::add_stack(const std::string& key, const ExpertsForm::Fused& parameter, Stack& stack) {
  Placer placer(stack, orientation_of(options_.to, parameter), packing_of(options_.to));
  place(stack, parameter, placer);
  std::vector<Dtype> dtypes;
  for (const Factor* factor : all_of(stack)) {
    for (const View* view : {&factor->a, &factor->b}) {
      if (const Dtype d = dtype_of(*view); std::find(dtypes.begin(), dtypes.end(), d) == dtypes.end())
        dtypes.push_back(d);
    }
  }
  Dtype dtype = dtypes.front();
  for (const Dtype d : dtypes) dtype = wider(dtype, d);
  dtype = options_.dtype.value_or(dtype);
  const std::int64_t components = stack.experts * stack.rank;
  const std::int64_t width = placer.stacked_width(), height = placer.columns_height();
  add_tensor({key + ".lora_A.weight", dtype, {components, width}, components, width, std::move(placer.stacked)},
             dtypes);
  add_tensor({key + ".lora_B.weight", dtype, {height, components}, height, components, std::move(placer.columns)},
             dtypes);
  const Exactness exactness = exactness_of(stack);
  note(exactness);
  step(describe_step(parameter, stack, exactness));
}

// One parameter of the experts, if the group has factors for it; returns how many.
std::size_t Encoder::fused_parameter(const std::string& module, const std::string& key,
                                     const ExpertsForm::Fused& parameter, std::int64_t experts, Group group) {
  const std::string name = module + "." + parameter.name;
  if (parameter.dims.size() == 2) {  // one matrix, not a stack
    const auto matrix = std::find_if(group.begin(), group.end(), [&](const Factor& f) {
      return f.site.expert < 0 && f.site.parameter == parameter.name;
    });
    if (matrix == group.end()) return 0;
    add_whole(key + ".lora_A.weight", matrix->a);
    add_whole(key + ".lora_B.weight", matrix->b);
    add_target(name, true, matrix->rank, matrix->scale);
    return 1;
  }
  Stack stack = collect(group, parameter, experts);
  const std::size_t found = all_of(stack).size();
  if (found == 0) return 0;
  measure(stack);
  if (parameter.interleaved && stack.parts.size() == 2 && file_ != nullptr) {
    if (!stack.shared_a)
      no_form(module, "gate and up of this family alternate row by row, and the factors do not share A",
              "keep the layout of the file");
    if (!all_join(stack, true))
      no_form(module, "gate and up of this family alternate row by row, and do not lie so in the file",
              "keep the layout of the file");
  }
  add_stack(key, parameter, stack);
  add_target(name, true, stack.rank, stack.scale);
  return found;
}

void Encoder::fused(const Experts& experts, Group group) {
  const ExpertsForm& form = *experts.form;
  const Generation g = generation_ == Generation::v4 && !form.v4.empty() ? Generation::v4 : Generation::v5;
  const auto& parameters = g == Generation::v4 ? form.v4 : form.v5;
  const std::int64_t count = count_experts(experts, group);
  // Wrappers nest in order of registration, the first parameter innermost: walk from the outermost.
  std::map<std::string, int> depth;
  std::size_t used = 0;
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    const std::string module = experts.fused_module(g, *parameter);
    std::string key = std::string(kPrefix) + module;
    for (int i = 0; i < depth[module]; ++i) key += ".base_layer";
    const std::size_t found = fused_parameter(module, key, *parameter, count, group);
    used += found;
    if (found != 0) ++depth[module];
  }
  if (used != group.size()) {
    no_form(group.front().site.module, "some factors have no place in the family's fused parameters",
            "keep the layout of the file");
  }
}

}  // namespace peft::layout
