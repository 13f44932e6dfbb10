// Where factors meet the base: what is not there, does not fit, or cannot be read.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/float_formats.h"
#include "config/peft_rules.h"
#include "model/index.h"
#include "peft/error.h"
#include "verbs/merge_updates.h"

namespace peft::merging {
namespace {

const ModuleTree* tree_of(const Model& model) {
  if (model.v5) return &*model.v5;
  return model.v4 ? &*model.v4 : nullptr;
}

// Tensors under which GPTQ, AWQ, bitsandbytes, compressed-tensors and others keep a packed weight.
constexpr const char* kPacked[] = {"qweight",        "weight_packed", "weight.absmax",           "weight_scale",
                                   "weight_scale_2", "SCB",           "weight_quantizer._scale", "trellis",
                                   "codes"};

std::string tensor_name(const MergeAdapter& adapter, std::uint32_t tensor) {
  return std::string(adapter.adapter.weights->tensors()[tensor].name);
}

std::string stored_shape(const Base& base, const Weight& weight) {
  const View& view = weight.parts.front().view;
  const auto shape = base.checkpoint.files()[view.source]->tensors()[view.tensor].shape;
  return fmt::format("{} [{}]", weight.parts.front().name, fmt::join(shape, ", "));
}

}  // namespace

// save_embedding_layers keeps the weight below LoRA under "base_layer.".
std::string own_suffix(const Extra& extra) {
  constexpr std::string_view kBelow = "base_layer.";
  return extra.suffix.starts_with(kBelow) ? extra.suffix.substr(kBelow.size()) : extra.suffix;
}

std::string Base::output_module() const {
  const ModuleTree* tree = tree_of(model);
  return tree == nullptr || tree->output_embedding.empty() ? "lm_head" : tree->output_embedding;
}

std::string Base::input_module() const {
  const ModuleTree* tree = tree_of(model);
  return tree == nullptr ? "" : tree->input_embedding;
}

bool Base::says_tied() const { return model.tie_word_embeddings && !input_module().empty(); }

bool Base::is_tied() const { return says_tied() && !weights.find(output_module(), "weight"); }

void Base::no_target(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const {
  for (const char* packed : kPacked) {
    const std::string module = site.expert < 0 || site.projection == Projection::none ? site.module : "";
    const std::string whole = module + "." + packed;  // a name may have dots of its own
    const auto dot = whole.rfind('.');
    if (module.empty() || !weights.find(whole.substr(0, dot), whole.substr(dot + 1))) continue;
    throw Error(ErrorCode::LO_QUANT, {.file = options.base,
                                      .tensor = describe(site),
                                      .problem = "the weight is packed in a form that merging does not read",
                                      .expected = "bf16, fp16, fp32, MXFP4 or block FP8",
                                      .got = whole,
                                      .hint = "merge into the model it was quantised from, then quantise again"});
  }
  const auto near = weights.near(site.module);
  throw Error(ErrorCode::LO_TARGET, {.file = adapter.adapter.weights->path(),
                                     .tensor = tensor_name(adapter, tensor),
                                     .problem = "the base has no tensor for " + describe(site),
                                     .expected = near.empty() ? std::string("a module of the base")
                                                              : fmt::format("one like {}", fmt::join(near, ", ")),
                                     .hint = "is this the right base model?"});
}

// The tensor can be computed with: floats of 16 bits and more, or codes whose scales are known.
void Base::require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const {
  for (const WeightPart& part : weight.parts) {
    const TensorInfo& tensor = checkpoint.files()[part.view.source]->tensors()[part.view.tensor];
    if (part.scales || is_plain_float(tensor.dtype)) continue;
    throw Error(ErrorCode::LO_QUANT,
                {.file = checkpoint.files()[part.view.source]->path(),
                 .tensor = part.name,
                 .problem = "the weight is packed in a form that merging does not read (wanted by " +
                            adapter.adapter.folder + " for " + describe(site) + ")",
                 .expected = "BF16, F16, F32, MXFP4 or block FP8 (weight_scale_inv)",
                 .got = std::string(tensor.dtype_name),
                 .hint = "merge into the model it was quantised from, then quantise again"});
  }
}

Weight Base::weight_of(const MergeAdapter& adapter, const Factor& factor) const {
  auto found = weights.find(factor.site);
  if (!found && is_tied() && factor.site.module == output_module()) {
    Site input = factor.site;
    input.module = input_module();
    found = weights.find(input);
    if (found) {  // an embedding is found as [dim, vocabulary]; an output is [vocabulary, dim]
      std::swap(found->out, found->in);
      for (WeightPart& part : found->parts) part.view = part.view.transposed();
    }
  }
  if (!found) no_target(adapter, factor.b.tensor, factor.site);
  require_readable(adapter, factor.site, *found);
  // Without a row a Conv1D looks like a Linear; only fan_in_fan_out tells, and a square weight shows nothing.
  const bool row = model.index && (model.index->family || model.index->dense);
  if (!row && factor.kind == FactorKind::linear && factor.site.parameter.empty() &&
      adapter.adapter.config.fan_in_fan_out) {
    std::swap(found->out, found->in);
    for (WeightPart& part : found->parts) part.view = part.view.transposed();
  }
  if (found->out == factor.out && found->in == factor.in) return *found;
  const bool fits_turned = found->out == factor.in && found->in == factor.out;
  const bool may_turn =
      factor.kind == FactorKind::embedding || (!factor.site.parameter.empty() && found->parts.size() == 1);
  if (fits_turned && may_turn) {
    std::swap(found->out, found->in);
    for (WeightPart& part : found->parts) part.view = part.view.transposed();
    return *found;
  }
  const bool vocabulary = factor.kind == FactorKind::embedding && found->out == factor.out;
  throw Error(vocabulary ? ErrorCode::LO_VOCAB : ErrorCode::LO_SHAPE,
              {.file = adapter.adapter.weights->path(),
               .tensor = tensor_name(adapter, factor.b.tensor),
               .problem = vocabulary ? "the base's embedding has another number of rows"
                                     : "the update does not fit the base's weight",
               .expected = fmt::format("[{}, {}] for {}", found->out, found->in, stored_shape(*this, *found)),
               .got = fmt::format("[{}, {}]", factor.out, factor.in),
               .hint = vocabulary    ? "resize the base's embedding as it was when the adapter was trained"
                       : fits_turned ? "transposed it would fit: see --orientation and fan_in_fan_out"
                                     : "is this the right base model?"});
}

// The parameter that an extra is about: a module's weight or bias, or a router's, or one of all experts.
Weight Base::place_of(const MergeAdapter& adapter, const Extra& extra) const {
  std::optional<Weight> found;
  if (extra.kind == ExtraKind::token_delta) {
    found = weights.find(extra.site.module, "weight");
  } else if (extra.kind == ExtraKind::lora_bias) {
    Site bias = extra.site;
    bias.parameter = "bias";
    found = bias.expert >= 0 ? weights.find(bias) : weights.find(extra.site.module, "bias");
  } else if (extra.site.expert >= 0) {
    Site site = extra.site;
    site.parameter = extra.suffix == "bias" ? "bias" : "";
    found = weights.find(site);
  } else {
    const std::string whole = extra.site.module + "." + own_suffix(extra);
    const auto dot = whole.rfind('.');
    found = weights.find(whole.substr(0, dot), whole.substr(dot + 1));
    if (!found && is_tied() && extra.site.module == output_module())
      found = weights.find(input_module(), own_suffix(extra));
  }
  if (!found) no_target(adapter, extra.tensor, extra.site);
  require_readable(adapter, extra.site, *found);
  return *found;
}

bool Base::lacks_head(const MergeAdapter& adapter, const Extra& extra) const {
  if (extra.kind != ExtraKind::saved_module || extra.site.expert >= 0) return false;
  if (!config::is_saved_by(config::task_heads(adapter.adapter.config), extra.site.module)) return false;
  const std::string whole = extra.site.module + "." + extra.suffix;
  const auto dot = whole.rfind('.');
  return !weights.find(whole.substr(0, dot), whole.substr(dot + 1));
}

std::set<OutTensors::Number> touched_codes(const Base& base, const std::vector<MergeAdapter>& adapters,
                                           const std::vector<QuantizedTensor>& quantized) {
  std::set<OutTensors::Number> touched;
  std::set<std::string> modules;  // of experts: one of them changes, none of the layer stays quantised
  const auto touch = [&](const Weight& weight, const Site& site) {
    for (const WeightPart& part : weight.parts) {
      if (part.scales) touched.insert({part.view.source, part.view.tensor});
    }
    if (site.expert >= 0 || !site.parameter.empty()) modules.insert(site.module + ".");
  };
  for (const MergeAdapter& adapter : adapters) {
    for (const Factor& factor : adapter.reading.factors.factors) touch(base.weight_of(adapter, factor), factor.site);
    for (const Extra& extra : adapter.reading.factors.extras) {
      if (extra.kind == ExtraKind::magnitude || base.lacks_head(adapter, extra)) continue;
      touch(base.place_of(adapter, extra), extra.site);
    }
  }
  for (const Experts& experts : base.model.experts) {
    const std::string& module = experts.v5_module.empty() ? experts.v4_module : experts.v5_module;
    if (!modules.contains(module + ".")) continue;
    for (std::int64_t e = 0; e < experts.num_experts; ++e) {
      for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
        if (const auto weight = base.weights.find({module, "", e, projection})) touch(*weight, {});
      }
    }
  }
  std::erase_if(touched, [&](const OutTensors::Number& number) {
    return std::none_of(quantized.begin(), quantized.end(), [&](const QuantizedTensor& tensor) {
      return OutTensors::Number{tensor.codes.view.source, tensor.codes.view.tensor} == number;
    });
  });
  return touched;
}

void refuse_unread_codes(const Base& base, const std::vector<QuantizedTensor>& quantized) {
  std::set<OutTensors::Number> read;
  for (const QuantizedTensor& tensor : quantized) {
    read.insert({tensor.codes.view.source, tensor.codes.view.tensor});
    read.insert({tensor.codes.scales->grid.source, tensor.codes.scales->grid.tensor});
  }
  for (const Checkpoint::Entry& entry : base.checkpoint.tensors()) {
    const TensorFile& file = *base.checkpoint.files()[entry.file];
    const bool codes = is_float(entry.tensor->dtype) && info(entry.tensor->dtype).bits == 8;
    if (!codes || read.contains({entry.file, static_cast<std::uint32_t>(entry.tensor - file.tensors().data())}))
      continue;
    throw Error(
        ErrorCode::LO_QUANT,
        {.file = file.path(),
         .tensor = std::string(entry.tensor->name),
         .problem = "the tensor is quantised in a form that merging does not read, and the others are not any more",
         .expected = "block FP8 (weight_scale_inv, in cells of weight_block_size)",
         .got = fmt::format("{} [{}]", entry.tensor->dtype_name, fmt::join(entry.tensor->shape, ", ")),
         .hint = "--keep-quantized leaves what no adapter touches"});
  }
}

}  // namespace peft::merging
