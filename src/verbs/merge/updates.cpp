#include "verbs/merge/updates.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/text.h"
#include "config/peft_rules.h"
#include "layout/keys.h"
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
    if (!magnitudes.empty())
      here(magnitudes.begin()->second).fail(ErrorCode::LO_PAIR, {.problem = "a DoRA magnitude without its pair"});
    for (const Extra& extra : adapter.reading.factors.extras) add_extra(extra, factors);
  }

  bool untied() const { return untied_; }

 private:
  ErrorPlace here(std::uint32_t tensor) const {
    return at(adapter_->adapter.weights->path(), std::string(info_of(tensor).name));
  }
  const TensorInfo& info_of(std::uint32_t tensor) const { return adapter_->adapter.weights->tensors()[tensor]; }
  View mine(View view) const {
    view.source = adapter_->source;
    return view;
  }
  MergedPart part_of(const Site& site, MergeRule rule) const {
    MergedPart part;
    part.site = site;
    part.rule = rule;
    part.adapter = number_;
    return part;
  }

  // Where input and output embedding are one parameter and only one of them changes, the output gets a tensor of its
  // own, unless the base has stored it twice.
  OutTensors::Target target_of(const WeightPart& part, const Site& site, bool changes_both) {
    OutTensors::Target found = tensors_.target_of(part);
    if (!says_tied_ || changes_both) return found;
    const bool output = site.module == base_.output_module();
    if (!output && site.module != base_.input_module()) return found;
    untied_ = true;
    if (!tied_) return found;
    if (!output_) output_ = tensors_.add_copy(found.tensor, base_.output_tensor());
    if (output) found.tensor = *output_;
    return found;
  }

  MergeRule rule_of(const Factor& factor) const {
    if (factor.kind == FactorKind::embedding) return MergeRule::embedding;
    if (factor.site.expert >= 0) return factor.site.parameter.empty() ? MergeRule::expert : MergeRule::parameter;
    if (!factor.site.parameter.empty()) return MergeRule::parameter;
    const auto kind = base_.model().kind(Generation::v5, factor.site.module);
    if (kind == ModuleKind::conv1d) return MergeRule::conv1d;
    // A router of transformers 5 owns its weight, so PEFT wraps the parameter.
    const bool fused = adapter_->reading.layout != Layout::peft_per_expert;
    return kind == ModuleKind::other && fused ? MergeRule::parameter : MergeRule::linear;
  }

  // Whether merge_and_unload() rounds the delta before it adds it: always for parameters and embeddings, else only with
  // safe_merge.
  bool rounds_delta(MergeRule rule, bool own_tensor) const {
    if (rule == MergeRule::embedding || rule == MergeRule::parameter) return true;
    const bool wraps_parameter =
        rule == MergeRule::expert && !(own_tensor && adapter_->reading.layout == Layout::peft_per_expert);
    return wraps_parameter || base_.options().mode == MergeMode::peft_safe;
  }

  void add_factor(const Factor& factor, std::optional<std::uint32_t> magnitude) {
    const Weight weight = base_.weight_of(*adapter_, factor);
    for (const WeightPart& from : weight.parts) {
      const OutTensors::Target target = target_of(from, factor.site, false);
      Update update;
      update.target = target.view;
      update.a = mine(factor.a);
      update.b = mine(weight.parts.size() == 1 ? factor.b : factor.b.row_range(from.row, from.view.rows));
      update.scale = factor.scale * adapter_->weight;
      update.adapter = number_;
      MergedPart part = part_of(factor.site, rule_of(factor));
      const bool own_tensor = tensors_.all()[target.tensor].planned.shape.size() == 2;
      update.delta_is_rounded = !magnitude && rounds_delta(part.rule, own_tensor);
      if (magnitude) {
        if (elements(info_of(*magnitude)) != factor.out) {
          here(*magnitude)
              .fail(ErrorCode::LO_SHAPE, {.problem = "a DoRA magnitude is not one value per output",
                                          .expected = fmt::format("{} values", factor.out),
                                          .got = shape_text(info_of(*magnitude).shape)});
        }
        update.magnitude = View{adapter_->source, *magnitude, from.row, from.view.rows, 1, 1, 1};
        part.dora = true;
      }
      part.rank = factor.rank;
      part.scale = update.scale;
      tensors_.add(target.tensor, std::move(update), std::move(part));
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
    if (factor == factors.end())
      here(extra.tensor).fail(ErrorCode::LO_PAIR, {.problem = "lora_B.bias without its pair"});
    const Weight weight = base_.weight_of(*adapter_, extra);
    const std::int64_t count = elements(info_of(extra.tensor));
    if (weight.out != 1 || weight.in != count) {
      here(extra.tensor)
          .fail(ErrorCode::LO_SHAPE, {.problem = "the bias does not fit the base's",
                                      .expected = fmt::format("[{}]", weight.in),
                                      .got = fmt::format("[{}]", count)});
    }
    const OutTensors::Target target = tensors_.target_of(weight.parts.front());
    Update update;
    update.target = target.view;
    update.a = View{adapter_->source, extra.tensor, 0, 1, count, count, 1};
    update.scale = factor->second->scale * adapter_->weight;
    update.adapter = number_;
    MergedPart part = part_of(extra.site, MergeRule::bias);
    part.rank = 1;
    part.scale = update.scale;
    tensors_.add(target.tensor, std::move(update), std::move(part));
  }

  // Only one adapter can replace a part of the base.
  void claim(std::size_t tensor, std::int64_t row, const Extra& extra) {
    const auto [at, fresh] = claimed_.emplace(std::pair(tensor, row), number_);
    if (fresh) return;
    here(extra.tensor)
        .fail(ErrorCode::LO_AMBIG, {.problem = "two adapters replace the same part of the base",
                                    .expected = "one",
                                    .got = describe(extra.site) + "." + extra.suffix,
                                    .hint = "merge them one after the other"});
  }

  // The merged model gets the head of the adapter's task. So does PEFT's, which is loaded for that task before merging.
  void add_head(const Extra& extra) {
    const std::string name = extra.site.module + "." + extra.suffix;
    auto at = heads_.find(name);
    if (at == heads_.end())
      at = heads_.emplace(name, tensors_.add_new(info_of(extra.tensor), adapter_->source, extra.tensor, name)).first;
    claim(at->second, -1, extra);
    tensors_.note(at->second, part_of(extra.site, MergeRule::saved));
  }

  void replace(const Extra& extra) {
    if (base_.lacks_head(*adapter_, extra)) return add_head(extra);
    const Weight weight = base_.weight_of(*adapter_, extra);
    const WeightPart& part = weight.parts.front();
    const OutTensors::Target target = target_of(part, extra.site, false);
    const TensorInfo& tensor = info_of(extra.tensor);
    const OutTensor& out = tensors_.all()[target.tensor];
    if (!std::ranges::equal(tensor.shape, out.planned.shape)) {
      const bool rows =
          tensor.shape.size() == 2 && out.planned.shape.size() == 2 && tensor.shape[1] == out.planned.shape[1];
      here(extra.tensor)
          .fail(rows ? ErrorCode::LO_VOCAB : ErrorCode::LO_SHAPE,
                {.problem = rows ? "the saved module has another number of rows than the base's"
                                 : "the saved tensor does not fit the base's",
                 .expected = fmt::format("{} [{}]", out.planned.name, fmt::join(out.planned.shape, ", ")),
                 .got = shape_text(tensor.shape),
                 .hint = rows ? "resize the base's embedding as it was when the adapter was trained"
                              : "is this the right base model?"});
    }
    const bool below = own_suffix(extra) != extra.suffix;  // what LoRA is added to: the updates stay
    if (!below && out.planned.merge && !out.planned.merge->updates.empty()) {
      here(extra.tensor).fail(ErrorCode::LO_AMBIG, {.problem = "a module is both replaced and updated"});
    }
    claim(target.tensor, -1, extra);
    const View source{adapter_->source, extra.tensor, 0, out.planned.rows, out.planned.cols, out.planned.cols, 1};
    tensors_.replace(
        target.tensor, source, below,
        part_of(extra.site, extra.kind == ExtraKind::base_bias ? MergeRule::bias_saved : MergeRule::saved));
  }

  const std::vector<std::int64_t>& token_ids(const Extra& extra) const {
    const auto& given = adapter_->adapter.config.trainable_token_indices;
    // By the adapter's own name: the base may be of another class of the family.
    const std::string own(layout::parse_key(info_of(extra.tensor).name).module);
    if (given) {
      for (const auto& [module, ids] : *given) {
        const auto is_named = [&](const std::string& name) { return config::is_named_by(name, module); };
        if (module.empty() || is_named(own) || is_named(extra.site.module)) return ids;
      }
    }
    here(extra.tensor)
        .fail(ErrorCode::LO_UNUSED, {.problem = "the config does not say which tokens these rows are",
                                     .expected = "trainable_token_indices with " + extra.site.module});
  }

  // The other one of two tied embeddings, where it is stored as a tensor too. Both get the same rows.
  std::optional<std::size_t> twin_of(std::size_t tensor, const Site& site) const {
    if (output_) return output_;
    const bool input = site.module == base_.input_module();
    if (!says_tied_ || tied_ || (!input && site.module != base_.output_module())) return std::nullopt;
    const auto twin = base_.find(input ? base_.output_module() : base_.input_module());
    if (!twin) return std::nullopt;
    const OutTensors::Target target = tensors_.target_of(twin->parts.front());
    const PlannedTensor &own = tensors_.all()[tensor].planned, &other = tensors_.all()[target.tensor].planned;
    return own.rows == other.rows && own.cols == other.cols ? std::optional(target.tensor) : std::nullopt;
  }

  void replace_tokens(const Extra& extra) {
    const Weight weight = base_.weight_of(*adapter_, extra);
    const OutTensors::Target target = target_of(weight.parts.front(), extra.site, true);
    const auto& ids = token_ids(extra);
    const auto shape = info_of(extra.tensor).shape;
    const std::int64_t rows = tensors_.all()[target.tensor].planned.rows,
                       cols = tensors_.all()[target.tensor].planned.cols;
    if (shape.size() != 2 || shape[0] != static_cast<std::int64_t>(ids.size()) || shape[1] != cols) {
      here(extra.tensor)
          .fail(ErrorCode::LO_SHAPE, {.problem = "the rows do not fit the embedding",
                                      .expected = fmt::format("[{}, {}]", ids.size(), cols),
                                      .got = shape_text(info_of(extra.tensor).shape)});
    }
    const auto twin = twin_of(target.tensor, extra.site);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= rows) {
        here(extra.tensor)
            .fail(ErrorCode::LO_VOCAB, {.problem = "the embedding has no such token",
                                        .expected = fmt::format("0 to {}", rows - 1),
                                        .got = std::to_string(ids[i])});
      }
      claim(target.tensor, ids[i], extra);
      const View row{adapter_->source, extra.tensor, static_cast<std::int64_t>(i) * cols, 1, cols, cols, 1};
      tensors_.replace_row(target.tensor, ids[i], row);
      if (twin) tensors_.replace_row(*twin, ids[i], row);
    }
    tensors_.note(target.tensor, part_of(extra.site, MergeRule::tokens));
    if (twin) tensors_.note(*twin, part_of(extra.site, MergeRule::tokens));
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

}  // namespace

bool add_updates(const Base& base, const std::vector<MergeAdapter>& adapters, OutTensors& tensors) {
  Updates updates(base, tensors);
  for (std::size_t i = 0; i < adapters.size(); ++i) updates.add(adapters[i], static_cast<std::uint32_t>(i));
  return updates.untied();
}

}  // namespace peft::merging
