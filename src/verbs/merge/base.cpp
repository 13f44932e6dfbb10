#include "verbs/merge/base.h"

#include <fmt/format.h>

#include <utility>

#include "peft/error.h"

namespace peft::merging {
namespace {

std::string tensor_name(const MergeAdapter& adapter, std::uint32_t tensor) {
  return std::string(adapter.adapter.weights->tensors()[tensor].name);
}

}  // namespace

// save_embedding_layers keeps the weight below LoRA under "base_layer.".
std::string own_suffix(const Extra& extra) {
  constexpr std::string_view kBelow = "base_layer.";
  return extra.suffix.starts_with(kBelow) ? extra.suffix.substr(kBelow.size()) : extra.suffix;
}

Weight transposed(Weight weight) {
  std::swap(weight.out, weight.in);
  for (WeightPart& part : weight.parts) part.view = part.view.transposed();
  return weight;
}

void Base::no_target(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site, const std::string& expected) {
  at(adapter.adapter.weights->path(), tensor_name(adapter, tensor))
      .fail(ErrorCode::LO_TARGET, {.problem = "the base has no tensor for " + describe(site),
                                   .expected = expected,
                                   .hint = "is this the right base model?"});
}

Weight Base::fitted(const MergeAdapter& adapter, const Factor& factor, const Weight& found, const std::string& stored) {
  if (found.out == factor.out && found.in == factor.in) return found;
  const bool fits_transposed = found.out == factor.in && found.in == factor.out;
  const bool may_transpose =
      factor.kind == FactorKind::embedding || (!factor.site.parameter.empty() && found.parts.size() == 1);
  if (fits_transposed && may_transpose) return transposed(found);
  const bool vocabulary = factor.kind == FactorKind::embedding && found.out == factor.out;
  at(adapter.adapter.weights->path(), tensor_name(adapter, factor.b.tensor))
      .fail(vocabulary ? ErrorCode::LO_VOCAB : ErrorCode::LO_SHAPE,
            {.problem = vocabulary ? "the base's embedding has another number of rows"
                                   : "the update does not fit the base's weight",
             .expected = fmt::format("[{}, {}] for {}", found.out, found.in, stored),
             .got = fmt::format("[{}, {}]", factor.out, factor.in),
             .hint = vocabulary        ? "resize the base's embedding as it was when the adapter was trained"
                     : fits_transposed ? "transposed it would fit: see --orientation and fan_in_fan_out"
                                       : "is this the right base model?"});
}

}  // namespace peft::merging
