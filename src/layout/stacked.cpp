#include "layout/stacked.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/text.h"
#include "layout/decode/components.h"
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

constexpr Projection kGate = Projection::gate, kUp = Projection::up, kDown = Projection::down;

// Sources: golden/consumers/tinker; the others by reading: Megatron-Bridge models/conversion/peft_bridge.py, SGLang
// srt/lora/lora.py. Files of VeOmni and KTransformers: tests/layouts/trainers.
const std::vector<StackedForm>& forms() {
  static const std::vector<StackedForm> rows = {
      {Layout::tinker,
       {{"w1", {kGate}}, {"w2", {kDown}}, {"w3", {kUp}}},
       Sharing::first_axis,
       false,
       false,
       "experts are stacked in three dimensions as w1, w2, w3"},
      {Layout::megatron_bridge,
       {{"gate_up_proj", {kGate, kUp}}, {"down_proj", {kDown}}},
       Sharing::none,
       false,
       false,
       "experts are stacked in three dimensions as gate_up_proj, down_proj"},
      {Layout::sglang,
       {{"gate_up_proj", {kGate, kUp}}, {"down_proj", {kDown}}},
       Sharing::outer_axis,
       false,
       true,
       "experts are stacked in three dimensions, and lora_A of gate_up_proj has a rank for gate and one for up"},
      {Layout::veomni,
       {{"gate_proj", {kGate}}, {"up_proj", {kUp}}, {"down_proj", {kDown}}},
       Sharing::two_axes,
       false,
       false,
       "experts are stacked in three dimensions as gate_proj, up_proj, down_proj, or share one pair"},
      {Layout::ktransformers,
       {{"gate", {kGate}}, {"up", {kUp}}, {"down", {kDown}}},
       Sharing::none,
       true,
       false,
       "experts are stacked in a file of their own, fused_expert_lora.safetensors"},
  };
  return rows;
}

const StackedForm::Tensor* tensor_of(const StackedForm& form, std::string_view name) {
  const auto found = std::ranges::find(form.tensors, name, &StackedForm::Tensor::name);
  return found == form.tensors.end() ? nullptr : &*found;
}

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

// Two-layer experts have no gate: their first matrix, which Tinker calls w1, is up.
Projection projection_in(const Experts* experts, Projection projection) {
  return projection == kGate && experts != nullptr && !has_gate(*experts) ? kUp : projection;
}

// ---- Reading

// How many experts the stack has: those of a side that is not shared, else the model's.
std::int64_t count_experts(const Context& context, const Slot& slot, std::int64_t in_a, std::int64_t in_b) {
  const Experts* of_layer = experts_at(context.model, std::string(model::parent(slot.module)));
  if (in_a == in_b && in_a > 1) return in_a;
  if (in_a != in_b && std::min(in_a, in_b) == 1) return std::max(in_a, in_b);
  if (in_a != in_b) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE, {.problem = "the two sides hold different numbers of experts",
                                                  .expected = "the same number, or 1 for a side that all share",
                                                  .got = fmt::format("{} and {}", in_a, in_b)});
  }
  if (of_layer != nullptr && of_layer->num_experts > 0) return of_layer->num_experts;
  context.at(slot.a).fail(ErrorCode::LO_EXPERT,
                          {.problem = "all experts share both sides, so the file does not say how many there are",
                           .hint = "--num-experts, or --base with the model"});
}

// Matrix of the first expert in a tensor [E or 1, rows, cols], or in one that all experts share.
View first_matrix(std::uint32_t index, const TensorInfo& tensor) {
  const std::int64_t rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
  return {0, index, 0, rows, cols, cols, 1};
}

std::int64_t stack_size(const TensorInfo& tensor) { return tensor.shape.size() == 2 ? 1 : tensor.shape[0]; }

// Whether the form can write one side for all experts and the other one for each.
bool may_share_a_side(const StackedForm& form) {
  return form.sharing == Sharing::first_axis || form.sharing == Sharing::outer_axis;
}

// Whether the slot could be of this form.
bool fits(const Context& context, const StackedForm& form, const Slot& slot) {
  const StackedForm::Tensor* tensor = tensor_of(form, model::leaf(slot.module));
  if (tensor == nullptr) return false;
  const TensorInfo &a = context.tensor(slot.a), &b = context.tensor(slot.b);
  const bool matrices = a.shape.size() == 2;
  if (matrices != (b.shape.size() == 2) || (matrices && form.sharing != Sharing::two_axes)) return false;
  if (!may_share_a_side(form) && !matrices && a.shape[0] != b.shape[0]) return false;
  const auto ranks = form.tiled ? static_cast<std::int64_t>(tensor->projections.size()) : 1;
  return a.shape[a.shape.size() - 2] == ranks * b.shape.back();
}

// Whether gate and up, of one rank, use a half of it each: so they are written where they share no lora_A. The rows of
// one have zeros in the half of the other.
bool use_halves(const Context& context, const TensorInfo& b, std::int64_t out) {
  const std::int64_t rank = b.shape.back(), half = rank / 2;
  if (half == 0) return false;
  const StoredMatrix all{context.adapter.weights->bytes(b), b.dtype, stack_size(b) * 2 * out, rank};
  bool any_gate = false, any_up = false;
  for (std::int64_t row = 0; row < all.rows; row += 2 * out) {
    const auto gate = nonzero_columns(all, row, row + out);
    if (std::find(gate.begin() + half, gate.end(), true) != gate.end()) return false;
    const auto up = nonzero_columns(all, row + out, row + 2 * out);
    if (std::find(up.begin(), up.begin() + half, true) != up.begin() + half) return false;
    if (rank % 2 != 0 && up.back()) return false;
    any_gate = any_gate || std::ranges::find(gate, true) != gate.end();
    any_up = any_up || std::ranges::find(up, true) != up.end();
  }
  return any_gate && any_up;
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

// The projections of the experts of one layer that one tensor holds; null where there is none of a projection.
struct Joined {
  const StackedForm::Tensor* tensor = nullptr;
  std::vector<const ProjectionStack*> parts;

  const ProjectionStack& first() const {
    return **std::ranges::find_if(parts, [](const auto* part) { return part; });
  }
  std::size_t experts() const { return first().factors.size(); }
  const Factor* factor(std::size_t part, std::size_t expert) const {
    return parts[part] == nullptr ? nullptr : parts[part]->factors[expert];
  }
};

// Whether one lora_A serves all projections of every expert. It serves a projection without LoRA too: its rows of
// lora_B are zeros.
bool shares_a(const UniformFile& out, const Joined& joined) {
  for (std::size_t e = 0; e < joined.experts(); ++e) {
    const Factor *first = joined.factor(0, e), *last = joined.factor(joined.parts.size() - 1, e);
    if (first == nullptr || last == nullptr) continue;
    if (first->rank != last->rank || !same_values(out.file(), first->a, last->a)) return false;
  }
  return true;
}

// What all tensors of a file are written as.
class StackWriter {
 public:
  StackWriter(UniformFile& out, const StackedForm& form) : out_(out), form_(form) {
    for (const ProjectionStack& stack : out.stacks()) join(stack);
    const auto needs_blocks = [&](const Joined& joined) {
      return joined.parts.size() > 1 && !form.tiled && !shares_a(out, joined);
    };
    blocks_ = std::ranges::any_of(joined_, needs_blocks);
    if (blocks_) out.widen(2 * largest_joined_rank());  // gate and up get a half of the rank each
    const auto has_zeros = [](const Joined& joined) {
      return std::ranges::find(joined.parts, nullptr) != joined.parts.end();
    };
    if (std::ranges::any_of(joined_, has_zeros)) out.note(Exactness::value_exact);
  }

  void run() {
    for (const Joined& joined : joined_) add(joined);
  }

 private:
  void join(const ProjectionStack& stack) {
    // Where experts have no gate, up takes its place: w1 of Tinker's two-layer experts.
    const bool alone = stack.projection == kUp && form_.tensors.front().projections.size() == 1 &&
                       form_.layout == Layout::tinker && !has_gate(*stack.experts);
    const Projection projection = alone ? kGate : stack.projection;
    for (const StackedForm::Tensor& tensor : form_.tensors) {
      const auto at = std::ranges::find(tensor.projections, projection);
      if (at == tensor.projections.end()) continue;
      if (tensor.projections.size() > 1 && !has_gate(*stack.experts)) {
        out_.no_form(experts_module(*stack.experts), "experts of two layers have no gate, and no gate_up_proj",
                     "peft-per-expert holds them");
      }
      auto found = std::ranges::find_if(joined_, [&](const Joined& other) {
        return other.tensor == &tensor && other.first().experts == stack.experts;
      });
      if (found == joined_.end()) {
        joined_.push_back({&tensor, std::vector<const ProjectionStack*>(tensor.projections.size())});
        found = std::prev(joined_.end());
      }
      found->parts[static_cast<std::size_t>(at - tensor.projections.begin())] = &stack;
    }
  }

  std::int64_t largest_joined_rank() const {
    std::int64_t rank = 0;
    for (const Joined& joined : joined_) {
      for (std::size_t p = 0; p < joined.parts.size() && joined.parts.size() > 1; ++p)
        for (std::size_t e = 0; e < joined.experts(); ++e)
          rank = std::max(rank, joined.factor(p, e) == nullptr ? 0 : joined.factor(p, e)->rank);
    }
    return rank;
  }

  bool shared_side(const Joined& joined, View Factor::*side) const {
    return std::ranges::all_of(
        joined.parts, [&](const ProjectionStack* part) { return part != nullptr && is_shared(out_, *part, side); });
  }

  void add(const Joined& joined);
  std::vector<Block> blocks_of(const Joined& joined, bool of_a, bool shared) const;

  UniformFile& out_;
  const StackedForm& form_;
  std::vector<Joined> joined_;
  bool blocks_ = false;  // the rank of a pair that is joined is halved between its projections
};

// lora_A: expert after expert, in a tiled form projection after projection. lora_B: rows of the projections.
std::vector<Block> StackWriter::blocks_of(const Joined& joined, bool of_a, bool shared) const {
  const std::int64_t half = blocks_ ? out_.rank() / 2 : 0;  // where the second projection's ranks begin
  const auto parts = static_cast<std::int64_t>(joined.parts.size());
  const std::int64_t a_rows = out_.rank() * (form_.tiled ? parts : 1), b_rows = joined.first().out * parts;
  std::vector<Block> blocks;
  for (std::size_t e = 0; e < (shared ? 1 : joined.experts()); ++e) {
    for (std::int64_t p = 0; p < parts; ++p) {
      const Factor* factor = joined.factor(static_cast<std::size_t>(p), e);
      if (factor == nullptr) continue;
      const auto expert = static_cast<std::int64_t>(e);
      if (of_a) {
        const bool once = parts > 1 && !form_.tiled && !blocks_;
        if (once && p > 0 && joined.factor(0, e) != nullptr) continue;
        blocks.push_back(out_.block_of_a(*factor, expert * a_rows + p * (form_.tiled ? out_.rank() : half)));
      } else {
        blocks.push_back(out_.block_of_b(*factor, expert * b_rows + p * factor->out));
        blocks.back().col = p * half;
      }
    }
  }
  return blocks;
}

void StackWriter::add(const Joined& joined) {
  const ProjectionStack& first = joined.first();
  const std::string key = form_.by_layer
                              ? fmt::format("layers.{}.experts.{}", first.experts->layer, joined.tensor->name)
                              : fmt::format("{}{}.{}", kPrefix, experts_module(*first.experts), joined.tensor->name);
  const std::string_view a_ending = form_.by_layer ? "_lora_a" : ".lora_A.weight",
                         b_ending = form_.by_layer ? "_lora_b" : ".lora_B.weight";
  const bool down = joined.tensor->projections.front() == kDown;
  bool a_shared = shared_side(joined, &Factor::a), b_shared = shared_side(joined, &Factor::b);
  const bool both = a_shared && b_shared && form_.sharing == Sharing::two_axes;
  if (form_.sharing == Sharing::first_axis)
    b_shared = b_shared && !a_shared;  // one side has to show how many there are
  if (form_.sharing == Sharing::outer_axis) a_shared = a_shared && !down, b_shared = b_shared && down;
  if (form_.sharing == Sharing::two_axes || form_.sharing == Sharing::none) a_shared = b_shared = both;
  const auto parts = static_cast<std::int64_t>(joined.parts.size()),
             experts = static_cast<std::int64_t>(joined.experts());
  const std::int64_t rank = out_.rank(), a_rows = rank * (form_.tiled ? parts : 1), b_rows = first.out * parts;
  const std::int64_t in_a = a_shared ? 1 : experts, in_b = b_shared ? 1 : experts;
  const auto shape = [&](std::int64_t count, std::int64_t rows, std::int64_t cols) {
    return both ? std::vector<std::int64_t>{rows, cols} : std::vector<std::int64_t>{count, rows, cols};
  };
  out_.add(key + std::string(a_ending), shape(in_a, a_rows, first.in), in_a * a_rows, first.in,
           blocks_of(joined, true, a_shared));
  out_.add(key + std::string(b_ending), shape(in_b, b_rows, rank), in_b * b_rows, rank,
           blocks_of(joined, false, b_shared));
  const std::string_view shared = both ? ", shared" : a_shared ? ", lora_A shared" : b_shared ? ", lora_B shared" : "";
  out_.step(fmt::format("{} of {} experts stacked{}", joined.tensor->name, experts, shared));
}

void add_dense(UniformFile& out, const Factor& factor, Layout layout) {
  const std::string module = layout == Layout::tinker
                                 ? renamed(out.model(), factor.site.module, &Renaming::transformers, &Renaming::tinker)
                                 : factor.site.module;
  const std::string key = std::string(kPrefix) + module;
  const bool embedding = factor.kind == FactorKind::embedding;
  out.add(key + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), {out.rank(), factor.in}, out.rank(), factor.in,
          {out.block_of_a(factor, 0)});
  out.add(key + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), {factor.out, out.rank()}, factor.out, out.rank(),
          {out.block_of_b(factor, 0)});
}

// A file that names experts by their layer alone cannot tell two of one layer apart (diffusion_gemma's encoder and
// decoder).
void require_one_per_layer(const UniformFile& out, const Model& model) {
  std::map<std::int64_t, const Experts*> seen;
  for (const Experts& experts : model.experts) {
    const auto [other, is_new] = seen.emplace(experts.layer, &experts);
    if (is_new) continue;
    out.no_form(experts_module(experts),
                fmt::format("the layout names experts by their layer, and {} is of layer {} too",
                            experts_module(*other->second), experts.layer),
                "peft-fused holds them");
  }
}

}  // namespace

std::span<const StackedForm> stacked_forms() { return forms(); }

const StackedForm* find_stacked_form(Layout layout) {
  const auto found = std::ranges::find(forms(), layout, &StackedForm::layout);
  return found == forms().end() ? nullptr : &*found;
}

bool is_stacked_name(std::string_view name) {
  return std::ranges::any_of(forms(), [&](const StackedForm& form) { return tensor_of(form, name) != nullptr; });
}

// A matrix below "experts" is what all experts share; below "shared_experts" it is that of a plain module.
bool is_stack_of_experts(std::string_view module, std::size_t dimensions) {
  const std::string_view above = model::leaf(model::parent(module));
  return is_stacked_name(model::leaf(module)) &&
         ((dimensions == 3 && above.ends_with("experts")) || (dimensions == 2 && above == "experts"));
}

std::string from_tinker(const Model& model, std::string_view module) {
  return renamed(model, module, &Renaming::tinker, &Renaming::transformers);
}

bool is_empty_stack(const Adapter& adapter, const Slot& slot) {
  const auto tensors = adapter.weights->tensors();
  return is_stacked_name(model::leaf(slot.module)) && model::leaf(model::parent(slot.module)).ends_with("experts") &&
         tensors[slot.a].bytes() == 0 && tensors[slot.b].bytes() == 0;
}

bool is_stacked(const Adapter& adapter, const Slot& slot) {
  const auto tensors = adapter.weights->tensors();
  const std::size_t dimensions = tensors[slot.a].shape.size();
  return slot.depth == 0 && !slot.embedding && tensors[slot.b].shape.size() == dimensions &&
         is_stack_of_experts(slot.module, dimensions);
}

const StackedForm& stacked_form(const Context& context, const std::vector<Slot>& slots) {
  std::vector<const StackedForm*> found;
  for (const StackedForm& form : forms()) {
    if (std::ranges::all_of(slots, [&](const Slot& slot) { return fits(context, form, slot); })) found.push_back(&form);
  }
  const bool is_veomni = !context.adapter.config.value("veomni_lora").empty();
  const auto named = std::ranges::find_if(found, [&](const StackedForm* form) {
    return context.options.layout ? form->layout == *context.options.layout
                                  : is_veomni && form->layout == Layout::veomni;
  });
  if (named != found.end()) return **named;
  if (found.size() == 1) return *found.front();
  // Of the one form with these names the shapes are wrong: what is wrong is said where the pairs are made.
  const auto has_names = [&](const StackedForm& form) {
    return std::ranges::all_of(slots, [&](const Slot& slot) {
      return tensor_of(form, model::leaf(slot.module)) != nullptr && context.tensor(slot.a).shape.size() == 3;
    });
  };
  if (found.empty() && std::ranges::count_if(forms(), has_names) == 1) return *std::ranges::find_if(forms(), has_names);
  const TensorInfo &a = context.tensor(slots.front().a), &b = context.tensor(slots.front().b);
  if (!found.empty()) {
    std::string names;
    for (const StackedForm* form : found)
      names += (names.empty() ? "--from " : ", --from ") + std::string(info(form->layout).name);
    context.at(slots.front().a)
        .fail(ErrorCode::LO_LAYOUT,
              {.problem = "several programs write these stacks of experts alike",
               .expected = names,
               .got = fmt::format("A {}, B {}, and no other stacks", shape_text(a.shape), shape_text(b.shape))});
  }
  context.at(slots.front().a)
      .fail(ErrorCode::LO_LAYOUT,
            {.problem = "these stacks of experts are those of no program that is known",
             .expected = "A [E or 1, r, in], B [E or 1, out, r]; A [E, 2 r, in] of gate and up in SGLang's form",
             .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
}

std::vector<NamedPair> stacked_pairs(const Context& context, const StackedForm& form, const Slot& slot) {
  const TensorInfo &a = context.tensor(slot.a), &b = context.tensor(slot.b);
  const auto& projections = tensor_of(form, model::leaf(slot.module))->projections;
  const auto parts = static_cast<std::int64_t>(projections.size());
  const View all_a = first_matrix(slot.a, a), all_b = first_matrix(slot.b, b);
  const std::string_view problem = stack_size(a) == 0 || stack_size(b) == 0 ? "the stack is empty"
                                   : all_b.rows % parts != 0 ? "gate and up have different numbers of rows"
                                   : stack_size(a) != stack_size(b) && !may_share_a_side(form)
                                       ? "the two sides hold different numbers of experts"
                                       : "";
  if (!problem.empty()) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE,
                            {.problem = std::string(problem),
                             .expected = "A [E or 1, r, in], B [E or 1, out, r]",
                             .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
  }
  NamedPair pair;
  pair.module = std::string(model::parent(slot.module));
  const bool is_model_known = context.model.v4 || context.model.v5 || experts_at(context.model, pair.module) != nullptr;
  if (form.by_layer && !is_model_known) {
    context.at(slot.a).fail(ErrorCode::MD_NEEDED, {.problem = "the file names its experts by their layer alone",
                                                   .expected = "--base with the model (its config.json is enough)"});
  }
  pair.experts = count_experts(context, slot, stack_size(a), stack_size(b));
  pair.a_step = stack_size(a) == 1 ? 0 : all_a.rows * all_a.cols;
  pair.b_step = stack_size(b) == 1 ? 0 : all_b.rows * all_b.cols;
  const std::int64_t rank = form.tiled ? all_a.rows / parts : all_a.rows, out = all_b.rows / parts;
  pair.scale = scale_of(context, slot.a, rank, std::string(slot.module)).scale;
  require_readable(context, slot.b);
  const bool halves = parts == 2 && !form.tiled && use_halves(context, b, out);
  std::vector<NamedPair> pairs;
  for (std::int64_t p = 0; p < parts; ++p) {
    pair.projection = projection_in(experts_at(context.model, pair.module), projections[static_cast<std::size_t>(p)]);
    pair.a = form.tiled ? all_a.row_range(p * rank, rank) : all_a;
    pair.b = all_b.row_range(p * out, out);
    if (halves) {
      pair.a = pair.a.row_range(p * (rank / 2), rank / 2);
      pair.b = pair.b.col_range(p * (rank / 2), rank / 2);
    }
    pairs.push_back(pair);
  }
  return pairs;
}

Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options) {
  const StackedForm& form = *find_stacked_form(options.to);
  EncodeOptions used = options;
  used.all_projections = options.all_projections || form.by_layer;  // KTransformers loads all three or none
  UniformFile out(factors, model, file, used);
  if (form.by_layer && !out.stacks().empty()) require_one_per_layer(out, model);
  StackWriter writer(out, form);
  for (const Factor* factor : out.dense()) add_dense(out, *factor, form.layout);
  writer.run();
  return out.finish();
}

}  // namespace peft::layout
