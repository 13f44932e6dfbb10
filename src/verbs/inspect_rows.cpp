#include "verbs/inspect_rows.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <tuple>

#include "base/text.h"
#include "layout/decode/decode.h"
#include "layout/keys.h"

namespace peft::verbs {
namespace {

// A width in the model's words.
std::string width_name(std::int64_t width, const Experts* experts) {
  if (experts != nullptr && experts->hidden == width) return fmt::format("hidden {}", width);
  if (experts != nullptr && experts->intermediate == width) return fmt::format("intermediate {}", width);
  if (experts != nullptr && experts->intermediate != 0 && 2 * experts->intermediate == width) {
    return fmt::format("gate and up 2 × {}", experts->intermediate);
  }
  return std::to_string(width);
}

struct TensorUse {
  const Factor* factor = nullptr;
  const Extra* extra = nullptr;
  bool is_a = false;         // lora_A on disk
  std::int64_t experts = 0;  // of a stacked tensor
};

class Meanings {
 public:
  explicit Meanings(const Input& input) : input_(input) {
    const Factors& factors = input.reading.factors;
    for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
    for (const Experts& experts : input.model.experts)
      by_module_[experts.v5_module.empty() ? experts.v4_module : experts.v5_module] = &experts;
    for (const Factor& factor : factors.factors) {
      for (const auto tensor : {factor.a.tensor, factor.b.tensor}) uses_[tensor].factor = &factor;
    }
    for (const Extra& extra : factors.extras) uses_[extra.tensor].extra = &extra;
  }

  std::string of(std::uint32_t index) const {
    const auto at = uses_.find(index);
    if (at == uses_.end()) return unused_meaning(index);
    if (at->second.extra != nullptr) return extra_meaning(*at->second.extra);
    const Factor& factor = *at->second.factor;
    const TensorInfo& tensor = input_.adapter.weights->tensors()[index];
    const bool stored_a = layout::parse_key(tensor.name).kind == layout::KeyKind::lora_a ||
                          layout::parse_key(tensor.name).kind == layout::KeyKind::embedding_a;
    const Experts* experts = factor.site.expert >= 0 ? find(factor.site.module) : nullptr;
    const bool stacked = factor.site.expert >= 0 && input_.reading.layout != Layout::peft_per_expert;
    if (!stacked || tensor.shape.size() != 2) {
      return stored_a ? fmt::format("[rank {}, in {}]", factor.rank, width_name(factor.in, experts))
                      : fmt::format("[out {}, rank {}]", width_name(factor.out, experts), factor.rank);
    }
    const auto count = counts_.at(factor.site.module);
    const std::int64_t components = tensor.shape[stored_a ? 0 : 1], width = tensor.shape[stored_a ? 1 : 0];
    const std::int64_t rank = components / std::max<std::int64_t>(1, count);
    const bool reversed = stored_a != (factor.a.tensor == index);
    const std::string stack = fmt::format("rank {} × experts {}", rank, count);
    const std::string width_text = width_name(width, experts);
    std::string text =
        stored_a ? fmt::format("[{}, {}]", stack, width_text) : fmt::format("[{}, {}]", width_text, stack);
    if (reversed)
      text += fmt::format(" reversed: should be {}",
                          stored_a ? fmt::format("[{}, {}]", stack, width_name(other_width(factor, index), experts))
                                   : fmt::format("[{}, {}]", width_name(other_width(factor, index), experts), stack));
    return text;
  }

 private:
  std::string unused_meaning(std::uint32_t index) const {
    switch (layout::unwrap(layout::parse_key(input_.adapter.weights->tensors()[index].name).module).part) {
      case layout::WrapperPart::original:
        return "the module before training: not used";
      case layout::WrapperPart::saved:
        return "the saved module once more: not used";
      case layout::WrapperPart::none:
        break;
    }
    return "belongs to nothing, or is zero throughout";
  }
  const Experts* find(const std::string& module) const {
    const auto at = by_module_.find(module);
    return at == by_module_.end() ? nullptr : at->second;
  }
  // The width the partner of a reversed tensor has.
  std::int64_t other_width(const Factor& factor, std::uint32_t index) const {
    const std::uint32_t partner = factor.a.tensor == index ? factor.b.tensor : factor.a.tensor;
    const TensorInfo& tensor = input_.adapter.weights->tensors()[partner];
    const bool partner_is_a = layout::parse_key(tensor.name).kind == layout::KeyKind::lora_a;
    return tensor.shape[partner_is_a ? 1 : 0];
  }
  static std::string extra_meaning(const Extra& extra) {
    switch (extra.kind) {
      case ExtraKind::magnitude:
        return "DoRA magnitude, one per output";
      case ExtraKind::lora_bias:
        return "bias of lora_B";
      case ExtraKind::saved_module:
        return "the module itself, saved whole";
      case ExtraKind::token_delta:
        return "new rows of the embedding, one per token index";
      case ExtraKind::base_bias:
        return "trained bias of the base model";
    }
    return {};
  }

  const Input& input_;
  std::map<std::string, std::int64_t> counts_;
  std::map<std::string, const Experts*> by_module_;
  std::map<std::uint32_t, TensorUse> uses_;
};

}  // namespace

std::string pattern_of(std::string_view name) {
  std::string pattern;
  std::string_view before;  // what a number counts
  int numbers = 0;
  for (std::size_t at = 0; at < name.size();) {
    const auto dot = std::min(name.find('.', at), name.size());
    const std::string_view segment = name.substr(at, dot - at);
    const bool number = !segment.empty() && segment.find_first_not_of("0123456789") == std::string_view::npos;
    if (!pattern.empty()) pattern += '.';
    if (!number)
      pattern += segment;
    else
      pattern += numbers++ == 0 && before != "experts" ? "{layer}" : before == "experts" ? "{expert}" : "{n}";
    before = segment;
    at = dot + 1;
  }
  return pattern;
}

std::vector<InspectReport::Row> describe_tensors(const Input& input, bool decoded) {
  std::optional<Meanings> meanings;
  if (decoded) meanings.emplace(input);
  std::map<std::tuple<std::string, std::string, std::string>, std::int64_t> rows;
  const auto tensors = input.adapter.weights->tensors();
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    std::string_view name = tensors[i].name;
    if (name.starts_with(layout::kPrefix)) name.remove_prefix(layout::kPrefix.size());
    ++rows[{pattern_of(name), shape_text(tensors[i].shape), meanings ? meanings->of(i) : std::string()}];
  }
  std::vector<InspectReport::Row> result;
  for (const auto& [row, count] : rows) result.push_back({std::get<0>(row), std::get<1>(row), std::get<2>(row), count});
  return result;
}

std::vector<InspectReport::RankRow> describe_ranks(const Input& input) {
  std::map<std::tuple<std::string, std::int64_t, double>, std::int64_t> rows;
  for (const Factor& factor : input.reading.factors.factors) {
    std::string site = factor.site.module.substr(factor.site.module.rfind('.') + 1);
    if (!factor.site.parameter.empty()) site += "." + factor.site.parameter;
    if (factor.site.projection != Projection::none) site += " " + std::string(name(factor.site.projection));
    ++rows[{site, factor.rank, factor.scale}];
  }
  std::vector<InspectReport::RankRow> result;
  for (const auto& [row, count] : rows) {
    const auto& [site, rank, scale] = row;
    const auto r = static_cast<double>(rank);
    const double alpha = input.adapter.config.use_rslora ? scale * std::sqrt(r) : scale * r;
    result.push_back({site, rank, alpha, scale, count});
  }
  return result;
}

}  // namespace peft::verbs
