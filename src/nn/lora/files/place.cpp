#include "nn/lora/files/place.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "adapter/view_math.h"
#include "config/peft_rules.h"
#include "layout/encode/stack.h"
#include "layout/forms.h"
#include "nn/lora/files/file_tensors.h"
#include "nn/model/network.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

std::int64_t largest_rank(const std::vector<const Factor*>& factors) {
  std::int64_t rank = 0;
  for (const Factor* factor : factors) rank = std::max(rank, factor == nullptr ? 0 : factor->rank);
  return rank;
}

// The rank of a fused file, which counts components that are zero in all experts.
std::int64_t stored_rank(const TensorFile& file, const Factor& factor, std::int64_t experts) {
  std::int64_t elements = 1;
  for (const std::int64_t d : file.tensors()[factor.a.tensor].shape) elements *= d;
  return factor.in == 0 || experts == 0 ? 0 : elements / (experts * factor.in);
}

// `out`: of the site, or of one of its projections. `same_kind`: an embedding's factors on an embedding.
void require_shape(const TensorFile& file, const Site& site, const Factor& factor, std::int64_t out,
                   bool same_kind = true) {
  if (factor.in == site.in() && factor.out == out && same_kind) return;
  at(file.path(), describe(factor.site))
      .fail(ErrorCode::LO_SHAPE,
            {.problem = "the factors do not fit the base model's weight",
             .expected = fmt::format("in {}, out {} ({} of the base)", site.in(), out, site.name()),
             .got = fmt::format("in {}, out {}", factor.in, factor.out),
             .hint = "is this the right base model for the adapter?"});
}

// Makes one stack. Gate and up share their components where they share A in every expert; else gate's come first
// and B is block-diagonal, as PEFT converts. Experts without a pair are zero. One scale serves all: a factor with
// another scale gets it multiplied into B. Throws LO_SHAPE for shapes that do not fit the base.
SiteFactors stack_pairs(const TensorFile& file, const Site& site, const ExpertsForm::Fused& parameter,
                        const layout::Stack& pairs, bool fused_layout) {
  const auto type = site.weight->scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t experts = site.num_experts();
  const auto parts = static_cast<std::int64_t>(pairs.parts.size());
  const std::int64_t out = site.out() / parts;
  const bool shared = layout::shares_a(&file, pairs);
  const std::vector<const Factor*> all = layout::all_of(pairs);
  SiteFactors factors;
  std::vector<std::int64_t> first(pairs.parts.size(), 0);
  std::int64_t rank = 0;
  for (std::size_t p = 0; p < pairs.parts.size(); ++p) {
    const std::int64_t own = largest_rank(pairs.parts[p]);
    first[p] = shared ? 0 : rank;
    rank = shared ? std::max(rank, own) : rank + own;
  }
  if (parts == 2 && !shared) factors.split = first[1];
  if (fused_layout) rank = std::max(rank, stored_rank(file, *all.front(), experts));
  factors.stack.scale = layout::common_scale(all);
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

class Placer {
 public:
  Placer(PeftModel::Impl& impl, const Input& input, int id)
      : impl_(impl), input_(input), file_(*input.adapter.weights), id_(id) {}

  void run() {
    require_finite();
    const auto& all = input_.reading.factors.factors;
    for (std::size_t i = 0; i < all.size();) {
      std::size_t j = i;
      while (j < all.size() && all[j].site.module == all[i].site.module) ++j;
      const std::span<const Factor> group(all.data() + i, j - i);
      const bool stacked = std::any_of(group.begin(), group.end(),
                                       [](const Factor& f) { return f.site.expert >= 0 || !f.site.parameter.empty(); });
      if (stacked)
        experts(group);
      else
        for (const Factor& factor : group) dense(factor);
      i = j;
    }
    for (const Extra& e : input_.reading.factors.extras) extra(e);
    fill_magnitudes();
    require_token_rows();
  }

 private:
  void require_finite() const {
    std::set<std::uint32_t> used;
    for (const Factor& f : input_.reading.factors.factors) used.insert({f.a.tensor, f.b.tensor});
    for (const std::uint32_t tensor : used) adapter::require_finite(file_, file_.tensors()[tensor]);
  }

  double dropout() const {
    const AdapterConfig& config = input_.adapter.config;
    const std::string old = config.value("peft_cpp_lora_dropout");  // what a conversion had to set to 0
    return old.empty() ? config.lora_dropout : std::strtod(old.c_str(), nullptr);
  }

  bool is_by_parameter(const std::string& module) const {
    const Module* owner = impl_.base->impl().modules.find(module);
    if (owner == nullptr || owner->kind == ModuleKind::other) return true;
    const std::string weight = module + ".weight";
    const auto& listed = input_.adapter.config.target_parameters;
    return listed && config::is_named_by(weight, *listed);
  }

  void matrix(Site& site, const Factor& factor) {
    const bool embedding = site.kind == SiteKind::embedding && !site.by_parameter;
    require_shape(file_, site, factor, site.out(), (factor.kind == FactorKind::embedding) == embedding);
    const auto type = site.weight->scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    SiteFactors factors;
    factors.stack.a = read_view(file_, factor.a, type).unsqueeze(0).to(site.weight->device());
    factors.stack.b = read_view(file_, factor.b.transposed(), type).unsqueeze(0).to(site.weight->device());
    factors.stack.scale = factor.scale;
    factors.dropout = dropout();
    site.adapters[id_] = std::move(factors);
  }

  void dense(const Factor& factor) {
    const std::string& module = factor.site.module;
    if (impl_.base->impl().modules.find(module) == nullptr) {
      peft::at(file_.path(), module)
          .fail(ErrorCode::LO_TARGET, {.problem = "the base model has no such module",
                                       .expected = "a module of " + impl_.base->folder(),
                                       .hint = "is this the right base model for the adapter?"});
    }
    matrix(impl_.site(module, "weight", is_by_parameter(module)), factor);
  }

  const peft::Experts& experts_of(const std::string& module) const {
    for (const peft::Experts& e : impl_.model.experts) {
      if (e.v5_module == module) return e;
    }
    peft::at(file_.path(), module)
        .fail(ErrorCode::LO_TARGET, {.problem = "the base model has no experts here",
                                     .hint = "is this the right base model for the adapter?"});
  }

  void experts(std::span<const Factor> group) {
    const peft::Experts& experts = experts_of(group.front().site.module);
    std::size_t used = 0;
    for (const ExpertsForm::Fused& parameter : experts.form->v5) {
      const std::string module = experts.fused_module(Generation::v5, parameter);
      if (parameter.dims.size() == 2) {  // one matrix for all experts: a bias
        for (const Factor& factor : group) {
          if (factor.site.expert >= 0 || factor.site.parameter != parameter.name) continue;
          matrix(impl_.site(module, parameter.name, true), factor);
          ++used;
        }
        continue;
      }
      const layout::Stack pairs = layout::collect(group, parameter, experts.num_experts);
      const std::size_t found = layout::all_of(pairs).size();
      if (found == 0) continue;
      used += found;
      Site& site = impl_.site(module, parameter.name, true);
      const bool fused = layout::is_fused(input_.reading.layout);
      site.adapters[id_] = stack_pairs(file_, site, parameter, pairs, fused);
      site.adapters[id_].dropout = dropout();
    }
    if (used == group.size()) return;
    peft::at(file_.path(), group.front().site.module)
        .fail(ErrorCode::LO_TARGET, {.problem = "some factors have no place in the base model's experts",
                                     .hint = "is this the right base model for the adapter?"});
  }

  // The site of an expert's projection, and the rows of the parameter that are the projection's.
  std::pair<Site*, Tensor> rows_of_expert(const Extra& extra, Tensor& values) {
    const peft::Experts& experts = experts_of(extra.site.module);
    for (const ExpertsForm::Fused& parameter : experts.form->v5) {
      const auto at = std::find(parameter.projections.begin(), parameter.projections.end(), extra.site.projection);
      if (at == parameter.projections.end()) continue;
      Site* site = impl_.find_site(experts.fused_module(Generation::v5, parameter), parameter.name);
      if (site == nullptr || site->find(id_) == nullptr) break;
      if (!values.defined()) values = at::full({site->num_experts(), site->out()}, std::nan(""), at::kFloat);
      const auto parts = static_cast<std::int64_t>(parameter.projections.size());
      const std::int64_t part = at - parameter.projections.begin(), out = site->out() / parts;
      Tensor row = values.select(0, extra.site.expert);
      return {site, parameter.interleaved ? row.slice(0, part, site->out(), parts) : row.narrow(0, part * out, out)};
    }
    return {nullptr, {}};
  }

  [[noreturn]] void unplaced(const Extra& extra, const std::string& why) const {
    const TensorInfo& info = file_.tensors()[extra.tensor];
    peft::at(file_.path(), std::string(info.name))
        .fail(ErrorCode::LO_UNUSED, {.problem = why, .hint = "is this the right base model for the adapter?"});
  }

  void expert_extra(const Extra& extra) {
    if (extra.kind != ExtraKind::magnitude) unplaced(extra, extra.suffix + " of an expert is not implemented");
    const peft::Experts& experts = experts_of(extra.site.module);
    for (const ExpertsForm::Fused& parameter : experts.form->v5) {
      const auto& projections = parameter.projections;
      if (std::find(projections.begin(), projections.end(), extra.site.projection) == projections.end()) continue;
      Tensor& values = expert_magnitudes_[experts.fused_module(Generation::v5, parameter) + "." + parameter.name];
      const auto [site, rows] = rows_of_expert(extra, values);
      const Tensor magnitude = read_tensor(file_, extra.tensor).flatten();
      if (site == nullptr) unplaced(extra, "DoRA's magnitude without lora_A and lora_B");
      if (magnitude.size(0) != rows.size(0)) unplaced(extra, "DoRA's magnitude has another length than the weight");
      rows.copy_(magnitude);
      return;
    }
    unplaced(extra, "the base model has no such projection");
  }

  // Rows of experts without DoRA keep their own norm, so that their gain is one.
  void fill_magnitudes() {
    for (auto& [name, values] : expert_magnitudes_) {
      Site& site = *impl_.site_by_name.at(name);
      SiteFactors& factors = site.adapters.at(id_);
      const Tensor norms = row_norms(site, factors);
      const Tensor given = values.to(norms.device(), norms.scalar_type());
      factors.magnitude = at::where(given.isnan(), norms, given);
    }
  }

  void dense_extra(const Extra& extra) {
    Site* site = impl_.find_site(extra.site.module, "weight");
    if (site == nullptr || site->find(id_) == nullptr) unplaced(extra, "its module has no lora_A and lora_B");
    SiteFactors& factors = site->adapters.at(id_);
    const Tensor values = read_tensor(file_, extra.tensor).flatten().to(factors.stack.a.options());
    if (values.size(0) != site->out()) unplaced(extra, "its length is not that of the weight's output");
    (extra.kind == ExtraKind::magnitude ? factors.magnitude : factors.bias) = values;
  }

  void whole_tensor(const Extra& extra) {
    std::string parameter = extra.suffix;
    if (parameter.starts_with("base_layer.")) parameter.erase(0, 11);
    const auto& saved = input_.adapter.config.modules_to_save;
    const bool copy = extra.kind == ExtraKind::saved_module && saved &&
                      std::any_of(saved->begin(), saved->end(), [&](const std::string& entry) {
                        return (extra.site.module + ".").find(entry + ".") != std::string::npos;
                      });
    Overlay& overlay =
        impl_.overlay(extra.site.module, parameter, copy ? Overlay::Kind::saved_module : Overlay::Kind::base_value);
    const Tensor values = read_tensor(file_, extra.tensor).to(overlay.original.options().requires_grad(false));
    if (values.sizes() != overlay.original.sizes()) {
      peft::at(file_.path(), std::string(file_.tensors()[extra.tensor].name))
          .fail(extra.site.module == impl_.tree.input_embedding ? ErrorCode::LO_VOCAB : ErrorCode::LO_SHAPE,
                {.problem = "the saved tensor has another shape than the base model's",
                 .expected = fmt::format("{}", fmt::join(overlay.original.sizes(), " x ")),
                 .got = fmt::format("{}", fmt::join(values.sizes(), " x ")),
                 .hint = "is this the right base model for the adapter?"});
    }
    overlay.adapters[id_] = values;
    if (extra.suffix != parameter) overlay.suffix[id_] = extra.suffix;
  }

  void token_rows(const Extra& extra) {
    for (TokenRows& rows : impl_.token_rows) {
      const auto own = rows.adapters.find(id_);
      if (rows.module != extra.site.module || own == rows.adapters.end() || own->second.follows) continue;
      const Tensor values = read_tensor(file_, extra.tensor);
      if (values.sizes() != own->second.delta.sizes())
        unplaced(extra, "not one row for each of trainable_token_indices");
      own->second.delta.copy_(values);
      own->second.given = true;
      return;
    }
    unplaced(extra, "trainable_token_indices of the config does not name this embedding");
  }

  void require_token_rows() const {
    for (const TokenRows& rows : impl_.token_rows) {
      const TokenRows::Rows* own = rows.find(id_);
      if (own == nullptr || own->follows || own->given) continue;
      peft::at(file_.path(), rows.module)
          .fail(ErrorCode::LO_MISSING, {.problem = "trainable_token_indices of the config has no rows in the file",
                                        .expected = fmt::format("{} rows", own->ids.size(0)),
                                        .hint = "is the file complete?"});
    }
  }

  void extra(const Extra& extra) {
    switch (extra.kind) {
      case ExtraKind::magnitude:
      case ExtraKind::lora_bias:
        return extra.site.expert >= 0 ? expert_extra(extra) : dense_extra(extra);
      case ExtraKind::token_delta:
        return token_rows(extra);
      default:
        return whole_tensor(extra);
    }
  }

  PeftModel::Impl& impl_;
  const Input& input_;
  const TensorFile& file_;
  const int id_;
  std::map<std::string, Tensor> expert_magnitudes_;  // by parameter; NaN: none given
};

}  // namespace

void place_tensors(PeftModel::Impl& impl, const Input& input, int id) { Placer(impl, input, id).run(); }

}  // namespace peft::nn
