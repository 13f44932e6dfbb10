#include "verbs/low_rank/groups.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "layout/encode/encode.h"
#include "layout/encode/stack.h"
#include "layout/forms.h"
#include "peft/adapter.h"
#include "peft/error.h"

namespace peft::verbs {
namespace {

struct SiteLess {
  bool operator()(const Site& x, const Site& y) const { return site_less(x, y); }
};
using Found = std::map<Site, std::vector<const Factor*>, SiteLess>;  // a factor or null for each adapter

void check_shape(const Input& input, const Factor& factor, const Factor& first) {
  const auto tensors = input.adapter.weights->tensors();
  const TensorInfo &a = tensors[factor.a.tensor], &b = tensors[factor.b.tensor];
  const bool stacked = factor.site.expert >= 0;  // three dimensions in the files of other programs
  if (!stacked && (a.shape.size() != 2 || b.shape.size() != 2)) {
    peft::at(input.adapter.weights->path(), std::string(a.name))
        .fail(ErrorCode::LO_NO_FORM, {.problem = "factors of a convolution are not computed with",
                                      .expected = "lora_A and lora_B with two dimensions",
                                      .hint = "merge the adapters one after the other instead"});
  }
  if (factor.out == first.out && factor.in == first.in && factor.kind == first.kind) return;
  peft::at(input.adapter.weights->path(), describe(factor.site))
      .fail(ErrorCode::LO_SHAPE, {.problem = "this matrix has another shape than in the first adapter",
                                  .expected = fmt::format("[{}, {}]", first.out, first.in),
                                  .got = fmt::format("[{}, {}]", factor.out, factor.in),
                                  .hint = "are both of one base model?"});
}

Found collect(std::span<const Input> inputs) {
  Found found;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    for (const Factor& factor : inputs[i].reading.factors.factors) {
      auto& of_site = found.try_emplace(factor.site, inputs.size(), nullptr).first->second;
      of_site[i] = &factor;
      const auto first = std::find_if(of_site.begin(), of_site.end(), [](const Factor* f) { return f != nullptr; });
      check_shape(inputs[i], factor, **first);
    }
  }
  return found;
}

// In every adapter that has one of them: both, and lora_A is the same.
bool share_a(std::span<const Input> inputs, const std::vector<const Factor*>& gate,
             const std::vector<const Factor*>& up) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (gate[i] == nullptr && up[i] == nullptr) continue;
    if (gate[i] == nullptr || up[i] == nullptr) return false;
    if (gate[i]->a != up[i]->a && !layout::same_values(*inputs[i].adapter.weights, gate[i]->a, up[i]->a)) return false;
  }
  return true;
}

void add_site(InputGroup& group, const Site& site, const std::vector<const Factor*>& factors) {
  const Factor& any = **std::find_if(factors.begin(), factors.end(), [](const Factor* f) { return f != nullptr; });
  group.group.sites.push_back(site);
  group.group.out.push_back(any.out);
  group.group.kind = any.kind;
  group.in = any.in;
  group.factors.resize(factors.size());
  for (std::size_t i = 0; i < factors.size(); ++i) group.factors[i].push_back(factors[i]);
}

// Rows of `part` to their places in the group's b, from column `col` on.
void put_rows(low_rank::Dense& b, const low_rank::Dense& part, double scale, std::int64_t first, std::int64_t step,
              std::int64_t col) {
  for (std::int64_t k = 0; k < part.cols; ++k) {
    for (std::int64_t i = 0; i < part.rows; ++i) b.at(first + i * step, col + k) = part.at(i, k) * scale;
  }
}

}  // namespace

std::int64_t MatrixGroup::rows() const { return std::accumulate(out.begin(), out.end(), std::int64_t{0}); }

std::int64_t MatrixGroup::first_row(std::size_t i) const {
  if (interleaved) return static_cast<std::int64_t>(i);
  return std::accumulate(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(i), std::int64_t{0});
}

std::string MatrixGroup::name() const {
  std::string text = describe(sites.front());
  for (std::size_t i = 1; i < sites.size(); ++i) text += "+" + std::string(peft::name(sites[i].projection));
  return text;
}

JoinRule join_rule(const Model& model, Layout to, const Site& site) {
  if (!layout::is_fused(to) || site.expert < 0) return {};
  const auto experts = std::find_if(model.experts.begin(), model.experts.end(),
                                    [&](const Experts& e) { return experts_module(e) == site.module; });
  if (experts == model.experts.end()) return {};
  const ExpertsForm& form = *experts->form;
  const bool v4 = layout::generation_of(to, model) == Generation::v4 && !form.v4.empty();
  for (const auto& parameter : v4 ? form.v4 : form.v5) {
    if (parameter.projections.size() == 2) return {true, parameter.interleaved};
  }
  return {};
}

std::vector<InputGroup> groups_of(std::span<const Input> inputs, const Model& model, Layout to) {
  const Found found = collect(inputs);
  std::vector<InputGroup> groups;
  for (auto at = found.begin(); at != found.end(); ++at) {
    InputGroup& group = groups.emplace_back();
    add_site(group, at->first, at->second);
    if (at->first.projection != Projection::gate) continue;
    const JoinRule rule = join_rule(model, to, at->first);
    const auto next = std::next(at);
    if (!rule.one_parameter || next == found.end()) continue;
    Site up = at->first;
    up.projection = Projection::up;
    if (next->first != up || !(rule.interleaved || share_a(inputs, at->second, next->second))) continue;
    add_site(group, next->first, next->second);
    group.group.interleaved = rule.interleaved;
    at = next;
  }
  return groups;
}

GroupFactors read_group(const InputGroup& group, std::size_t which, const TensorFile& file) {
  GroupFactors result;
  std::vector<std::size_t> present;
  for (std::size_t i = 0; i < group.group.sites.size(); ++i) {
    if (group.factors[which][i] != nullptr) present.push_back(i);
  }
  const auto factor = [&](std::size_t i) -> const Factor& { return *group.factors[which][i]; };
  if (present.empty()) return {{low_rank::Dense(group.group.rows(), 0), low_rank::Dense(group.in, 0)}, 1};
  const bool both = present.size() == 2;
  const bool shared = !both || factor(0).a == factor(1).a || layout::same_values(file, factor(0).a, factor(1).a);
  const bool one_scale = !both || factor(0).scale == factor(1).scale;
  result.scale = one_scale ? factor(present.front()).scale : 1;
  std::vector<low_rank::Dense> a;
  std::int64_t rank = 0;
  for (const std::size_t i : present) {
    if (a.empty() || !shared) {
      a.push_back(low_rank::read(adapter::bind(file, factor(i).a).transposed()));
      rank += factor(i).rank;
    }
  }
  result.values = {low_rank::Dense(group.group.rows(), rank), low_rank::beside(a)};
  std::int64_t col = 0;
  for (const std::size_t i : present) {
    const low_rank::Dense part = low_rank::read(adapter::bind(file, factor(i).b));
    put_rows(result.values.b, part, one_scale ? 1 : factor(i).scale, group.group.first_row(i), group.group.row_step(),
             col);
    if (!shared) col += factor(i).rank;
  }
  return result;
}

}  // namespace peft::verbs
