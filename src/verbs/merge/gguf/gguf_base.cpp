#include "verbs/merge/gguf/gguf_base.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/float_formats.h"
#include "base/text.h"
#include "gguf/types/block_formats.h"
#include "peft/error.h"

namespace peft::merging {
namespace {

constexpr std::string_view kInput = "token_embd", kOutput = "output";

std::string readable_types() {
  std::string text = "F32, F16, BF16";
  for (const gguf::BlockFormat& format : gguf::block_formats()) text += ", " + std::string(info(format.type).name);
  return text;
}

}  // namespace

std::string GgufBase::input_module() const { return prefix_ + ".embed_tokens"; }

GgufBase::Place GgufBase::place_of(const std::string& module) const {
  for (const std::string& prefix : {prefix_, names_.prefix}) {
    const auto [layer, below] = layout::gguf_place(prefix, module);
    if (const auto* tensor = names_.find_module(below)) return {layer, tensor};
  }
  return {};
}

// A tensor of the file as [rows, columns].
std::optional<Weight> GgufBase::matrix(const std::string& tensor) const {
  const auto found = file_.find(tensor);
  if (!found) return std::nullopt;
  const TensorInfo& info = file_.info(*found);
  if (info.shape.empty() || info.shape.size() > 2) return std::nullopt;
  const std::int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1, cols = info.shape.back();
  WeightPart part{tensor, {found->first, found->second, 0, rows, cols, cols, 1}, 0, std::nullopt};
  if (!is_float(info.dtype)) part.scales = Scales{.kind = Scales::Kind::ggml, .grid = {}};
  return Weight::of(std::move(part));
}

std::optional<Weight> GgufBase::expert(const Site& site) const {
  const auto [layer, below] = layout::gguf_place(prefix_, site.module);
  if (below != names_.experts || !site.parameter.empty()) return std::nullopt;
  for (const layout::GgufExperts& row : layout::gguf_experts()) {
    const auto which = std::ranges::find(row.projections, site.projection) - row.projections.begin();
    const auto parts = static_cast<std::int64_t>(row.projections.size());
    if (which == parts) continue;
    const std::string name = layout::gguf_tensor_name(layer, row.name);
    const auto found = file_.find(name);
    if (!found) continue;
    const TensorInfo& info = file_.info(*found);
    if (info.shape.size() != 3 || site.expert >= info.shape[0] || info.shape[1] % parts != 0) return std::nullopt;
    const std::int64_t rows = info.shape[1] / parts, in = info.shape[2];
    const View view{found->first, found->second, (site.expert * info.shape[1] + which * rows) * in, rows, in, in, 1};
    WeightPart part{name, view, 0, std::nullopt};
    if (!is_float(info.dtype)) part.scales = Scales{.kind = Scales::Kind::ggml, .grid = {}};
    return Weight::of(std::move(part));
  }
  return std::nullopt;
}

// The weight of a module as the file has it; a tied output is the input embedding.
std::optional<Weight> GgufBase::stored(const Site& site) const {
  if (site.expert >= 0) return expert(site);
  if (!site.parameter.empty() && site.parameter != "weight") return std::nullopt;
  const Place place = place_of(site.module);
  if (place.tensor == nullptr) return std::nullopt;
  if (place.tensor->name == kOutput && file_.is_tied()) return matrix(layout::gguf_tensor_name(-1, kInput));
  return matrix(layout::gguf_tensor_name(place.layer, place.tensor->name));
}

std::optional<Weight> GgufBase::find(const std::string& module) const {
  const Place place = place_of(module);
  if (place.tensor == nullptr) return std::nullopt;
  return matrix(layout::gguf_tensor_name(place.layer, place.tensor->name));
}

// The converter lets the rows of a head's halves take turns: row i of half b is row 2 i + b of the head in the file.
Weight GgufBase::in_order(Weight weight, const Place& place) const {
  if (place.tensor == nullptr || !place.tensor->permuted) return weight;
  const std::int64_t heads = file_.heads(place.layer, place.tensor->name == "attn_k");
  const WeightPart whole = weight.parts.front();
  if (heads == 0 || weight.out % (2 * heads) != 0) {
    at(file_.files().front()->path(), whole.name)
        .fail(ErrorCode::LO_SHAPE, {.problem = "the rows of this tensor are no whole attention heads",
                                    .expected = heads == 0 ? "a number of heads in the file's metadata"
                                                           : fmt::format("a multiple of {}", 2 * heads),
                                    .got = std::to_string(weight.out)});
  }
  weight.parts.clear();
  const std::int64_t half = weight.out / heads / 2;
  for (std::int64_t row = 0; row < weight.out; row += half) {
    WeightPart part = whole;
    part.row = row;
    part.view = whole.view.row_range(row / half / 2 * 2 * half + row / half % 2, half, 2);
    weight.parts.push_back(std::move(part));
  }
  return weight;
}

void GgufBase::require_form(const MergeAdapter& adapter, const Site& site) const {
  for (const std::string& prefix : {prefix_, names_.prefix}) {
    const auto [layer, below] = layout::gguf_place(prefix, site.module);
    if (std::ranges::find(names_.changed, below) == names_.changed.end()) continue;
    at(adapter.adapter.weights->path(), describe(site))
        .fail(ErrorCode::LO_NO_FORM,
              {.problem = "llama.cpp holds this weight in another form (split, reordered or scaled)",
               .expected = "a weight that its converter keeps as it is",
               .hint = "merge into the model in transformers' form, and convert that"});
  }
}

void GgufBase::require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const {
  for (const WeightPart& part : weight.parts) {
    const gguf::GgufFile& file = *file_.files()[part.view.source];
    const TensorInfo& tensor = file.tensors()[part.view.tensor];
    if (is_plain_float(tensor.dtype) || gguf::find_block_format(file.type_of(tensor)) != nullptr) continue;
    at(file.path(), part.name)
        .fail(ErrorCode::LO_QUANT, {.problem = "merging does not read tensors of this type (wanted by " +
                                               adapter.adapter.folder + " for " + describe(site) + ")",
                                    .expected = readable_types(),
                                    .got = std::string(tensor.dtype_name),
                                    .hint = "merge into a file of another quantisation, such as F16 or Q8_0, and "
                                            "quantise the result with llama-quantize"});
  }
}

void GgufBase::missing(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const {
  require_form(adapter, site);
  const auto* names = layout::gguf_place(prefix_, site.module).layer < 0 ? nullptr : place_of(site.module).tensor;
  no_target(adapter, tensor, site,
            names != nullptr ? "a tensor " + names->name + " in that layer"
                             : "a weight that llama.cpp's " + file_.architecture() + " has under a known name");
}

std::string GgufBase::shape_of(const Weight& weight) const {
  const WeightPart& part = weight.parts.front();
  return part.name + " " + shape_text(file_.info({part.view.source, part.view.tensor}).shape);
}

Weight GgufBase::weight_of(const MergeAdapter& adapter, const Factor& factor) const {
  auto found = stored(factor.site);
  if (!found) missing(adapter, factor.b.tensor, factor.site);
  require_readable(adapter, factor.site, *found);
  const Place place = factor.site.expert >= 0 ? Place{} : place_of(factor.site.module);
  if (factor.kind == FactorKind::embedding && place.tensor != nullptr && place.tensor->name == kInput)
    found = transposed(std::move(*found));
  return in_order(fitted(adapter, factor, *found, shape_of(*found)), place);
}

// Embeddings and heads that are saved whole, rows of tokens, and biases. Norms are not taken: the converter adds to
// some of them.
Weight GgufBase::weight_of(const MergeAdapter& adapter, const Extra& extra) const {
  const bool bias = own_suffix(extra) == "bias" || extra.kind == ExtraKind::lora_bias;
  const Place place = extra.site.expert >= 0 ? Place{} : place_of(extra.site.module);
  std::optional<Weight> found;
  if (place.tensor != nullptr && bias && !place.tensor->permuted) {
    const std::string weight = layout::gguf_tensor_name(place.layer, place.tensor->name);
    found = matrix(weight.substr(0, weight.rfind('.')) + ".bias");
  } else if (place.tensor != nullptr && !bias && (place.tensor->name == kInput || place.tensor->name == kOutput)) {
    found = stored(Site{extra.site.module, {}, -1, Projection::none});
  }
  if (!found) missing(adapter, extra.tensor, extra.site);
  require_readable(adapter, extra.site, *found);
  return *found;
}

}  // namespace peft::merging
