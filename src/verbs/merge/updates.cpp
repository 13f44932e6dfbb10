#include "verbs/merge/updates.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/float_dtypes.h"
#include "config/task_heads.h"
#include "layout/keys.h"
#include "model/index.h"
#include "peft/error.h"

namespace peft::merging {
namespace {

std::int64_t elements(const TensorInfo& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.shape) count *= size;
  return count;
}

class Updates {
 public:
  Updates(const Base& base, OutTensors& tensors)
      : base_(base), tensors_(tensors), says_tied_(base.says_tied()), tied_(base.is_tied()) {}

  void add(const MergeAdapter& adapter, std::uint32_t number) {
    adapter_ = &adapter;
    number_ = number;
    std::map<Site, std::uint32_t> magnitudes;
    for (const Extra& extra : adapter.reading.factors.extras) {
      if (extra.kind == ExtraKind::magnitude) magnitudes[extra.site] = extra.tensor;
    }
    std::map<Site, const Factor*> factors;
    for (const Factor& factor : adapter.reading.factors.factors) {
      const auto magnitude = magnitudes.find(factor.site);
      add_factor(factor, magnitude == magnitudes.end() ? std::nullopt : std::optional(magnitude->second));
      if (magnitude != magnitudes.end()) magnitudes.erase(magnitude);
      factors[factor.site] = &factor;
    }
    if (!magnitudes.empty()) fail(magnitudes.begin()->second, "a DoRA magnitude without its pair", ErrorCode::LO_PAIR);
    for (const Extra& extra : adapter.reading.factors.extras) add_extra(extra, factors);
  }

  bool untied() const { return untied_; }

 private:
  [[noreturn]] void fail(std::uint32_t tensor, std::string problem, ErrorCode code, std::string expected = {},
                         std::string got = {}, std::string hint = {}) const {
    throw Error(code, {.file = adapter_->adapter.weights->path(),
                       .tensor = std::string(info_of(tensor).name),
                       .problem = std::move(problem),
                       .expected = std::move(expected),
                       .got = std::move(got),
                       .hint = std::move(hint)});
  }
  const TensorInfo& info_of(std::uint32_t tensor) const { return adapter_->adapter.weights->tensors()[tensor]; }
  View mine(View view) const {
    view.source = adapter_->source;
    return view;
  }
  MergedPart part_of(const Site& site, std::string rule) const {
    MergedPart part;
    part.site = describe(site);
    part.rule = std::move(rule);
    part.adapter = number_;
    return part;
  }

  // Input and output embedding are one parameter, and only one of them changes: the output gets a tensor of its own, if
  // the base has not stored it twice.
  OutTensors::Place place(const WeightPart& part, const Site& site, bool changes_both) {
    OutTensors::Place found = tensors_.place(part);
    if (!says_tied_ || changes_both) return found;
    const bool output = site.module == base_.output_module();
    if (!output && site.module != base_.input_module()) return found;
    untied_ = true;
    if (!tied_) return found;
    if (!output_) output_ = tensors_.add_copy(found.tensor, base_.output_module() + ".weight");
    if (output) found.tensor = *output_;
    return found;
  }

  std::string rule_of(const Factor& factor) const {
    if (factor.kind == FactorKind::embedding) return "embedding";
    if (factor.site.expert >= 0) return factor.site.parameter.empty() ? "expert" : "parameter";
    if (!factor.site.parameter.empty()) return "parameter";
    const auto kind = base_.model.kind(Generation::v5, factor.site.module);
    if (kind == ModuleKind::conv1d) return "conv1d";
    // A router of transformers 5 owns its weight: PEFT wraps the parameter.
    const bool fused = adapter_->reading.layout != Layout::peft_per_expert;
    return kind == ModuleKind::other && fused ? "parameter" : "linear";
  }

  // Where merge_and_unload() rounds the delta before it adds it: parameters and embeddings always, the rest when safe.
  bool rounds_delta(const std::string& rule, bool own_tensor) const {
    if (rule == "embedding" || rule == "parameter") return true;
    const bool wraps_parameter =
        rule == "expert" && !(own_tensor && adapter_->reading.layout == Layout::peft_per_expert);
    return wraps_parameter || base_.options.mode == MergeMode::peft_safe;
  }

  void add_factor(const Factor& factor, std::optional<std::uint32_t> magnitude) {
    const Weight weight = base_.weight_of(*adapter_, factor);
    for (const WeightPart& from : weight.parts) {
      const OutTensors::Place at = place(from, factor.site, false);
      Update update;
      update.target = at.view;
      update.a = mine(factor.a);
      update.b = mine(weight.parts.size() == 1 ? factor.b : factor.b.row_range(from.row, from.view.rows));
      update.scale = factor.scale * adapter_->weight;
      update.adapter = number_;
      MergedPart part = part_of(factor.site, rule_of(factor));
      const bool own_tensor = tensors_.all()[at.tensor].planned.shape.size() == 2;
      update.delta_is_rounded = !magnitude && rounds_delta(part.rule, own_tensor);
      if (magnitude) {
        if (elements(info_of(*magnitude)) != factor.out) {
          fail(*magnitude, "a DoRA magnitude is not one value per output", ErrorCode::LO_SHAPE,
               fmt::format("{} values", factor.out), fmt::format("[{}]", fmt::join(info_of(*magnitude).shape, ", ")));
        }
        update.magnitude = View{adapter_->source, *magnitude, from.row, from.view.rows, 1, 1, 1};
        part.dora = true;
      }
      part.rank = factor.rank;
      part.scale = update.scale;
      tensors_.add(at.tensor, std::move(update), std::move(part));
    }
  }

  void add_extra(const Extra& extra, const std::map<Site, const Factor*>& factors) {
    switch (extra.kind) {
      case ExtraKind::magnitude:
        return;
      case ExtraKind::lora_bias:
        return add_bias(extra, factors);
      case ExtraKind::token_delta:
        return replace_tokens(extra);
      case ExtraKind::saved_module:
      case ExtraKind::base_bias:
        return replace(extra);
    }
  }

  void add_bias(const Extra& extra, const std::map<Site, const Factor*>& factors) {
    const auto factor = factors.find(extra.site);
    if (factor == factors.end()) fail(extra.tensor, "lora_B.bias without its pair", ErrorCode::LO_PAIR);
    const Weight weight = base_.place_of(*adapter_, extra);
    const std::int64_t count = elements(info_of(extra.tensor));
    if (weight.out != 1 || weight.in != count) {
      fail(extra.tensor, "the bias does not fit the base's", ErrorCode::LO_SHAPE, fmt::format("[{}]", weight.in),
           fmt::format("[{}]", count));
    }
    const OutTensors::Place at = tensors_.place(weight.parts.front());
    Update update;
    update.target = at.view;
    update.a = View{adapter_->source, extra.tensor, 0, 1, count, count, 1};
    update.scale = factor->second->scale * adapter_->weight;
    update.adapter = number_;
    MergedPart part = part_of(extra.site, "bias");
    part.rank = 1;
    part.scale = update.scale;
    tensors_.add(at.tensor, std::move(update), std::move(part));
  }

  // Once, by one adapter: two cannot both be what the module becomes.
  void claim(std::size_t tensor, std::int64_t row, const Extra& extra) {
    const auto [at, fresh] = claimed_.emplace(std::pair(tensor, row), number_);
    if (fresh) return;
    fail(extra.tensor, "two adapters replace the same part of the base", ErrorCode::LO_AMBIG, "one",
         describe(extra.site) + "." + extra.suffix, "merge them one after the other");
  }

  // The model becomes one of the adapter's task, as PEFT's is: it is loaded as such a model before it is merged.
  void add_head(const Extra& extra) {
    const std::string name = extra.site.module + "." + extra.suffix;
    auto at = heads_.find(name);
    if (at == heads_.end())
      at = heads_.emplace(name, tensors_.add_new(info_of(extra.tensor), adapter_->source, extra.tensor, name)).first;
    claim(at->second, -1, extra);
    tensors_.note(at->second, part_of(extra.site, "saved"));
  }

  void replace(const Extra& extra) {
    if (base_.lacks_head(*adapter_, extra)) return add_head(extra);
    const Weight weight = base_.place_of(*adapter_, extra);
    const WeightPart& part = weight.parts.front();
    const OutTensors::Place at = place(part, extra.site, false);
    const TensorInfo& tensor = info_of(extra.tensor);
    const OutTensor& out = tensors_.all()[at.tensor];
    if (!std::ranges::equal(tensor.shape, out.planned.shape)) {
      const bool rows =
          tensor.shape.size() == 2 && out.planned.shape.size() == 2 && tensor.shape[1] == out.planned.shape[1];
      fail(extra.tensor,
           rows ? "the saved module has another number of rows than the base's"
                : "the saved tensor does not fit the base's",
           rows ? ErrorCode::LO_VOCAB : ErrorCode::LO_SHAPE,
           fmt::format("{} [{}]", out.planned.name, fmt::join(out.planned.shape, ", ")),
           fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
           rows ? "resize the base's embedding as it was when the adapter was trained"
                : "is this the right base model?");
    }
    const bool below = own_suffix(extra) != extra.suffix;  // what LoRA is added to: the updates stay
    if (!below && out.planned.merge && !out.planned.merge->updates.empty()) {
      fail(extra.tensor, "a module is both replaced and updated", ErrorCode::LO_AMBIG);
    }
    claim(at.tensor, -1, extra);
    const View source{adapter_->source, extra.tensor, 0, out.planned.rows, out.planned.cols, out.planned.cols, 1};
    tensors_.replace(at.tensor, source, below,
                     part_of(extra.site, extra.kind == ExtraKind::base_bias ? "bias saved" : "saved"));
  }

  const std::vector<std::int64_t>& token_ids(const Extra& extra) const {
    const auto& given = adapter_->adapter.config.trainable_token_indices;
    // By the adapter's own name: the base may be of another class of the family.
    const std::string own(layout::parse_key(info_of(extra.tensor).name).module);
    if (given) {
      for (const auto& [module, ids] : *given) {
        const auto is_named = [&](const std::string& name) { return name == module || name.ends_with("." + module); };
        if (module.empty() || is_named(own) || is_named(extra.site.module)) return ids;
      }
    }
    fail(extra.tensor, "the config does not say which tokens these rows are", ErrorCode::LO_UNUSED,
         "trainable_token_indices with " + extra.site.module);
  }

  // The other side of tied embeddings, where it is a tensor too: its rows were the same, and stay so.
  std::optional<std::size_t> twin_of(std::size_t tensor, const Site& site) const {
    if (output_) return output_;
    const bool input = site.module == base_.input_module();
    if (!says_tied_ || tied_ || (!input && site.module != base_.output_module())) return std::nullopt;
    const auto twin = base_.weights.find(input ? base_.output_module() : base_.input_module(), "weight");
    if (!twin) return std::nullopt;
    const OutTensors::Place at = tensors_.place(twin->parts.front());
    const PlannedTensor &own = tensors_.all()[tensor].planned, &other = tensors_.all()[at.tensor].planned;
    return own.rows == other.rows && own.cols == other.cols ? std::optional(at.tensor) : std::nullopt;
  }

  void replace_tokens(const Extra& extra) {
    const Weight weight = base_.place_of(*adapter_, extra);
    const OutTensors::Place at = place(weight.parts.front(), extra.site, true);
    const auto& ids = token_ids(extra);
    const auto shape = info_of(extra.tensor).shape;
    const std::int64_t rows = tensors_.all()[at.tensor].planned.rows, cols = tensors_.all()[at.tensor].planned.cols;
    if (shape.size() != 2 || shape[0] != static_cast<std::int64_t>(ids.size()) || shape[1] != cols) {
      fail(extra.tensor, "the rows do not fit the embedding", ErrorCode::LO_SHAPE,
           fmt::format("[{}, {}]", ids.size(), cols), fmt::format("[{}]", fmt::join(shape, ", ")));
    }
    const auto twin = twin_of(at.tensor, extra.site);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= rows) {
        fail(extra.tensor, "the embedding has no such token", ErrorCode::LO_VOCAB, fmt::format("0 to {}", rows - 1),
             std::to_string(ids[i]));
      }
      claim(at.tensor, ids[i], extra);
      const View row{adapter_->source, extra.tensor, static_cast<std::int64_t>(i) * cols, 1, cols, cols, 1};
      tensors_.replace_row(at.tensor, ids[i], row);
      if (twin) tensors_.replace_row(*twin, ids[i], row);
    }
    tensors_.note(at.tensor, part_of(extra.site, "tokens"));
    if (twin) tensors_.note(*twin, part_of(extra.site, "tokens"));
  }

  const Base& base_;
  OutTensors& tensors_;
  const bool says_tied_, tied_;
  bool untied_ = false;
  std::optional<std::size_t> output_;
  std::map<std::string, std::size_t> heads_;  // tensors that the base lacks
  const MergeAdapter* adapter_ = nullptr;
  std::uint32_t number_ = 0;
  std::map<std::pair<std::size_t, std::int64_t>, std::uint32_t> claimed_;
};

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

bool add_updates(const Base& base, const std::vector<MergeAdapter>& adapters, OutTensors& tensors) {
  Updates updates(base, tensors);
  for (std::size_t i = 0; i < adapters.size(); ++i) updates.add(adapters[i], static_cast<std::uint32_t>(i));
  return updates.untied();
}

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
