#include "verbs/merge/checkpoint_base.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/float_formats.h"
#include "config/peft_rules.h"
#include "model/families/index.h"
#include "peft/error.h"

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

std::pair<std::string, std::string> split_last(const std::string& name) {
  const auto dot = name.rfind('.');
  return {name.substr(0, dot), name.substr(dot + 1)};
}

std::optional<Weight> find_parameter(const Weights& weights, const std::string& name) {
  const auto [module, parameter] = split_last(name);
  return weights.find(module, parameter);
}

std::string stored_shape(const Checkpoint& checkpoint, const Weight& weight) {
  const View& view = weight.parts.front().view;
  const auto shape = checkpoint.files()[view.source]->tensors()[view.tensor].shape;
  return fmt::format("{} [{}]", weight.parts.front().name, fmt::join(shape, ", "));
}

}  // namespace

std::string CheckpointBase::output_module() const {
  const ModuleTree* tree = tree_of(model());
  return tree == nullptr || tree->output_embedding.empty() ? "lm_head" : tree->output_embedding;
}

std::string CheckpointBase::input_module() const {
  const ModuleTree* tree = tree_of(model());
  return tree == nullptr ? "" : tree->input_embedding;
}

bool CheckpointBase::says_tied() const { return model().tie_word_embeddings && !input_module().empty(); }

bool CheckpointBase::is_tied() const { return says_tied() && !weights_.find(output_module(), "weight"); }

void CheckpointBase::missing(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const {
  for (const char* packed : kPacked) {
    const std::string module = site.expert < 0 || site.projection == Projection::none ? site.module : "";
    const std::string whole = module + "." + packed;  // a name may have dots of its own
    if (module.empty() || !find_parameter(weights_, whole)) continue;
    at(options().base, describe(site))
        .fail(ErrorCode::LO_QUANT, {.problem = "the weight is packed in a form that merging does not read",
                                    .expected = "bf16, fp16, fp32, MXFP4 or block FP8",
                                    .got = whole,
                                    .hint = "merge into the model it was quantised from, then quantise again"});
  }
  const auto near = weights_.near(site.module);
  no_target(adapter, tensor, site,
            near.empty() ? std::string("a module of the base") : fmt::format("one like {}", fmt::join(near, ", ")));
}

// Requires a tensor that can be computed with: floats of 16 bits and more, or codes whose scales are known.
void CheckpointBase::require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const {
  for (const WeightPart& part : weight.parts) {
    const TensorInfo& tensor = checkpoint_.files()[part.view.source]->tensors()[part.view.tensor];
    if (part.scales || is_plain_float(tensor.dtype)) continue;
    at(checkpoint_.files()[part.view.source]->path(), part.name)
        .fail(ErrorCode::LO_QUANT, {.problem = "the weight is packed in a form that merging does not read (wanted by " +
                                               adapter.adapter.folder + " for " + describe(site) + ")",
                                    .expected = "BF16, F16, F32, MXFP4 or block FP8 (weight_scale_inv)",
                                    .got = std::string(tensor.dtype_name),
                                    .hint = "merge into the model it was quantised from, then quantise again"});
  }
}

// A tied output embedding is the input embedding, which is found as [dim, vocabulary]; an output is [vocabulary, dim].
std::optional<Weight> CheckpointBase::stored(const Site& site) const {
  auto found = weights_.find(site);
  if (found || !is_tied() || site.module != output_module()) return found;
  Site input = site;
  input.module = input_module();
  found = weights_.find(input);
  return found ? std::optional(transposed(std::move(*found))) : found;
}

Weight CheckpointBase::weight_of(const MergeAdapter& adapter, const Factor& factor) const {
  const auto found = stored(factor.site);
  if (!found) missing(adapter, factor.b.tensor, factor.site);
  require_readable(adapter, factor.site, *found);
  // Where the family table has no row, a Conv1D looks like a Linear. Only fan_in_fan_out tells them apart: a square
  // weight shows nothing.
  const bool has_row = model().index && (model().index->family || model().index->dense);
  const bool is_conv1d = !has_row && factor.kind == FactorKind::linear && factor.site.parameter.empty() &&
                         adapter.adapter.config.fan_in_fan_out;
  return fitted(adapter, factor, is_conv1d ? transposed(*found) : *found, stored_shape(checkpoint_, *found));
}

// The parameter that an extra is about: a module's weight or bias, or a router's, or one of all experts.
Weight CheckpointBase::weight_of(const MergeAdapter& adapter, const Extra& extra) const {
  std::optional<Weight> found;
  if (extra.kind == ExtraKind::token_delta) {
    found = weights_.find(extra.site.module, "weight");
  } else if (extra.kind == ExtraKind::lora_bias) {
    Site bias = extra.site;
    bias.parameter = "bias";
    found = bias.expert >= 0 ? weights_.find(bias) : weights_.find(extra.site.module, "bias");
  } else if (extra.site.expert >= 0) {
    Site site = extra.site;
    site.parameter = extra.suffix == "bias" ? "bias" : "";
    found = weights_.find(site);
  } else {
    found = find_parameter(weights_, extra.site.module + "." + own_suffix(extra));
    if (!found && is_tied() && extra.site.module == output_module())
      found = weights_.find(input_module(), own_suffix(extra));
  }
  if (!found) missing(adapter, extra.tensor, extra.site);
  require_readable(adapter, extra.site, *found);
  return *found;
}

bool CheckpointBase::lacks_head(const MergeAdapter& adapter, const Extra& extra) const {
  if (extra.kind != ExtraKind::saved_module || extra.site.expert >= 0) return false;
  if (!config::is_saved_by(config::task_heads(adapter.adapter.config), extra.site.module)) return false;
  return !find_parameter(weights_, extra.site.module + "." + extra.suffix);
}

std::set<OutTensors::Number> touched_codes(const CheckpointBase& base, const std::vector<MergeAdapter>& adapters,
                                           const std::vector<QuantizedTensor>& quantized) {
  std::set<OutTensors::Number> touched;
  std::set<std::string> modules;  // where one expert changes, no expert of the layer stays quantised
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
      touch(base.weight_of(adapter, extra), extra.site);
    }
  }
  for (const Experts& experts : base.model().experts) {
    const std::string& module = experts_module(experts);
    if (!modules.contains(module + ".")) continue;
    for (std::int64_t e = 0; e < experts.num_experts; ++e) {
      for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
        if (const auto weight = base.weights().find({module, "", e, projection})) touch(*weight, {});
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

void refuse_unread_codes(const CheckpointBase& base, const std::vector<QuantizedTensor>& quantized) {
  std::set<OutTensors::Number> read;
  for (const QuantizedTensor& tensor : quantized) {
    read.insert({tensor.codes.view.source, tensor.codes.view.tensor});
    read.insert({tensor.codes.scales->grid.source, tensor.codes.scales->grid.tensor});
  }
  for (const Checkpoint::Entry& entry : base.checkpoint().tensors()) {
    const TensorFile& file = *base.checkpoint().files()[entry.file];
    const bool codes = is_float(entry.tensor->dtype) && info(entry.tensor->dtype).bits == 8;
    if (!codes || read.contains({entry.file, static_cast<std::uint32_t>(entry.tensor - file.tensors().data())}))
      continue;
    at(file.path(), std::string(entry.tensor->name))
        .fail(
            ErrorCode::LO_QUANT,
            {.problem = "the tensor is quantised in a form that merging does not read, and the others are not any more",
             .expected = "block FP8 (weight_scale_inv, in cells of weight_block_size)",
             .got = fmt::format("{} [{}]", entry.tensor->dtype_name, fmt::join(entry.tensor->shape, ", ")),
             .hint = "--keep-quantized leaves what no adapter touches"});
  }
}

}  // namespace peft::merging
