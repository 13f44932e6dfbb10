#include "layout/encode/uniform.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "layout/encode/stack.h"
#include "peft/error.h"

namespace peft::layout {

UniformFile::UniformFile(const Factors& factors, const Model& model, const TensorFile* file,
                         const EncodeOptions& options)
    : model_(model), file_(file), options_(options) {
  if (file_ == nullptr)
    no_form({}, "a config alone has no form in this layout", "convert the adapter with its weights");
  for (const Experts& experts : model.experts) experts_.emplace(experts_module(experts), &experts);
  for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
  refuse_extras(factors);
  const auto& all = factors.factors;
  for (std::size_t i = 0, end = 0; i < all.size(); i = end) {
    while (end < all.size() && all[end].site.module == all[i].site.module) ++end;
    add_module({all.begin() + static_cast<std::ptrdiff_t>(i), end - i});
  }
  if (options.all_projections) add_missing();
  measure(factors);
}

// Stacks of zeros for the projections of experts that have none.
void UniformFile::add_missing() {
  const std::vector<ProjectionStack> there = stacks_;
  for (const ProjectionStack& stack : there) {
    const auto& form = *stack.experts->form;
    for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
      const bool exists = std::ranges::any_of(form.v5, [&](const ExpertsForm::Fused& parameter) {
        return std::ranges::find(parameter.projections, projection) != parameter.projections.end();
      });
      const bool written = std::ranges::any_of(stacks_, [&](const ProjectionStack& other) {
        return other.experts == stack.experts && other.projection == projection;
      });
      if (!exists || written) continue;
      ProjectionStack zeros = stack;
      zeros.projection = projection;
      std::ranges::fill(zeros.factors, nullptr);
      if ((projection == Projection::down) != (stack.projection == Projection::down)) std::swap(zeros.in, zeros.out);
      stacks_.push_back(std::move(zeros));
      note(Exactness::value_exact);
      step("stack of zeros for a projection without LoRA");
    }
  }
}

void UniformFile::no_form(const std::string& what, std::string problem, std::string hint) const {
  at(file_ == nullptr ? std::string() : file_->path(), what)
      .fail(ErrorCode::LO_NO_FORM, {.problem = std::move(problem),
                                    .expected = "something that " + std::string(info(options_.to).name) + " can hold",
                                    .hint = std::move(hint)});
}

void UniformFile::refuse_extras(const Factors& factors) const {
  if (factors.extras.empty()) return;
  const Extra& extra = factors.extras.front();
  const std::string where = describe(extra.site);
  switch (extra.kind) {
    case ExtraKind::magnitude:
      no_form(where, "DoRA has no form in this layout", "merge the adapter into the base model");
    case ExtraKind::saved_module:
      no_form(where, "a module that is saved whole has no form in this layout",
              "merge the adapter into the base model");
    case ExtraKind::token_delta:
      no_form(where, "trained tokens have no form in this layout", "merge the adapter into the base model");
    default:
      no_form(where, "a bias has no form in this layout", "merge the adapter into the base model");
  }
}

// Experts that the file leaves out count: their matrices are zero.
void UniformFile::add_module(std::span<const Factor> group) {
  const Site& site = group.front().site;
  const auto experts = experts_.find(site.module);
  if (experts == experts_.end()) {
    for (const Factor& factor : group) add_dense(factor);
    return;
  }
  const auto counted = counts_.find(site.module);
  const std::int64_t count = expert_count(experts->second->num_experts, model_.num_experts_assumed,
                                          counted == counts_.end() ? 0 : counted->second, group);
  const std::size_t first = stacks_.size();
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.projection == Projection::none) {
      no_form(describe(factor.site), "a parameter that is not gate, up or down has no form in this layout",
              "keep the layout of the file");
    }
    auto stack = std::find_if(stacks_.begin() + static_cast<std::ptrdiff_t>(first), stacks_.end(),
                              [&](const ProjectionStack& s) { return s.projection == factor.site.projection; });
    if (stack == stacks_.end()) {
      stacks_.push_back({experts->second, factor.site.projection,
                         std::vector<const Factor*>(static_cast<std::size_t>(count)), factor.in, factor.out});
      stack = std::prev(stacks_.end());
    }
    if (factor.in != stack->in || factor.out != stack->out)
      no_form(describe(factor.site), "experts of one layer have different shapes", "is this one adapter?");
    stack->factors[static_cast<std::size_t>(factor.site.expert)] = &factor;
  }
}

void UniformFile::add_dense(const Factor& factor) {
  if (factor.site.expert >= 0) {
    no_form(describe(factor.site), "nothing is known about these experts",
            "give the model with --base, or its type with --family");
  }
  if (!factor.site.parameter.empty() && factor.site.parameter != "weight")
    no_form(describe(factor.site), "a parameter has no form in this layout", "keep the layout of the file");
  for (const std::uint32_t tensor : {factor.a.tensor, factor.b.tensor}) {
    if (file_->tensors()[tensor].shape.size() > 2)
      no_form(describe(factor.site), "a convolution has no form in this layout",
              "merge the adapter into the base model");
  }
  dense_.push_back(&factor);
}

void UniformFile::measure(const Factors& factors) {
  std::vector<const Factor*> all;
  for (const Factor& factor : factors.factors) {
    all.push_back(&factor);
    rank_ = std::max(rank_, factor.rank);
  }
  if (all.empty()) return;
  scale_ = common_scale(all);
  Exactness& worst = result_.exactness;
  for (const Factor* factor : all) {
    worst = std::max(worst, exactness_of_gain(folded_gain(*factor, scale_)));
    if (factor->rank != rank_) worst = std::max(worst, Exactness::value_exact);
  }
  for (const ProjectionStack& stack : stacks_) {
    if (std::ranges::find(stack.factors, nullptr) != stack.factors.end())
      worst = std::max(worst, Exactness::value_exact);
  }
}

void UniformFile::widen(std::int64_t rank) {
  rank_ = std::max(rank_, rank);
  note(Exactness::value_exact);
}

Block UniformFile::block_of_b(const Factor& factor, std::int64_t row) const {
  return {row, 0, 1, factor.b, folded_gain(factor, scale_)};
}

void UniformFile::add(std::string name, std::vector<std::int64_t> shape, std::int64_t rows, std::int64_t cols,
                      std::vector<Block> blocks) {
  PlannedTensor tensor{std::move(name), Dtype::f32, std::move(shape), rows, cols, std::move(blocks)};
  const auto dtype_of = [&](const Block& block) { return file_->tensors()[block.source.tensor].dtype; };
  if (!tensor.blocks.empty()) tensor.dtype = dtype_of(tensor.blocks.front());
  for (const Block& block : tensor.blocks) tensor.dtype = wider(tensor.dtype, dtype_of(block));
  tensor.dtype = options_.dtype.value_or(tensor.dtype);
  for (const Block& block : tensor.blocks)
    result_.exactness = std::max(result_.exactness, exactness_of_cast(dtype_of(block), tensor.dtype));
  tensor.must_be_finite = true;
  result_.tensors.push_back(std::move(tensor));
}

Encoded UniformFile::finish() {
  for (const auto& [text, count] : steps_)
    result_.steps.push_back(count == 1 ? text : fmt::format("{} x {}", count, text));
  result_.uniform = {.rank = rank_, .scale = scale_, .keys = {}};
  return std::move(result_);
}

}  // namespace peft::layout
