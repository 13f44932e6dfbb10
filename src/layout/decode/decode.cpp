#include "layout/decode/decode.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/system.h"
#include "base/text.h"
#include "config/peft_rules.h"
#include "layout/decode/components.h"
#include "layout/decode/fused_form.h"
#include "layout/forms.h"
#include "model/families/index.h"

namespace peft::layout {
namespace {

// `name`: the module as this generation calls it.
void check_weight_shape(const Context& context, const Slot& slot, const std::string& name, const Pair& pair,
                        Generation g) {
  const auto& tree = context.model.tree(g);
  if (!tree) return;
  const Module* module = tree->find(name);
  if (module == nullptr || module->weight.size() != 2) return;
  const bool in_out = module->kind == ModuleKind::conv1d || module->kind == ModuleKind::embedding;
  const std::int64_t out = module->weight[in_out ? 1 : 0], in = module->weight[in_out ? 0 : 1];
  if (pair.out == out && pair.in == in) return;
  if (module->kind == ModuleKind::embedding && pair.out == out) {
    context.at(slot.a).fail(ErrorCode::LO_VOCAB,
                            {.problem = "the embedding of the model has another number of rows",
                             .expected = fmt::format("{} tokens", in),
                             .got = fmt::format("{} tokens", pair.in),
                             .hint = "resize the model's embedding as it was when the adapter was trained"});
  }
  const bool turned = pair.out == in && pair.in == out;
  // Without a row a Conv1D looks like a Linear; fan_in_fan_out says which it is.
  const bool guessed = context.model.index && !context.model.index->family && !context.model.index->dense;
  if (turned && guessed && context.adapter.config.fan_in_fan_out) return;
  context.at(slot.a).fail(
      ErrorCode::LO_SHAPE,
      {.problem = "the pair does not fit the model's weight",
       .expected = fmt::format("A [r, {}], B [{}, r]", in, out),
       .got = fmt::format("A {}, B {}", shape_text(context.tensor(slot.a).shape),
                          shape_text(context.tensor(slot.b).shape)),
       .hint = turned ? "transposed it would fit: is fan_in_fan_out set wrongly?" : "is this the right base model?"});
}

void add_extras(Context& context, const Slot& slot, const Site& site) {
  if (slot.magnitude != kNoTensor) {
    context.reading.factors.extras.push_back({ExtraKind::magnitude, site, "lora_magnitude_vector", slot.magnitude});
  }
  if (slot.b_bias != kNoTensor) {
    context.reading.factors.extras.push_back({ExtraKind::lora_bias, site, "lora_B.bias", slot.b_bias});
  }
}

// One expert's pair, natural: A [rank, in], B [out, rank], as views into the stacked tensors.
struct ExpertPair {
  View a, b;
};
ExpertPair expert_pair(const FusedSlot& slot, const FusedForm& form, std::int64_t expert) {
  const std::int64_t columns = slot.rank * slot.num_experts;
  const bool rank_major = form.packing == BPacking::rank_major;
  const View a{0, slot.slot->a, expert * slot.rank * slot.a_width, slot.rank, slot.a_width, slot.a_width, 1};
  const View b{0,         slot.slot->b, rank_major ? expert : expert * slot.rank, slot.b_width,
               slot.rank, columns,      rank_major ? slot.num_experts : 1};
  if (form.orientation == Orientation::natural) return {a, b};
  return {b.transposed(), a.transposed()};
}

// The rows of B that belong to one projection of a fused parameter.
View rows_of(const View& b, const ExpertsForm::Fused& parameter, std::size_t which) {
  const auto parts = static_cast<std::int64_t>(parameter.projections.size());
  const auto index = static_cast<std::int64_t>(which);
  if (parts == 1) return b;
  const std::int64_t rows = b.rows / parts;
  return parameter.interleaved ? b.row_range(index, rows, parts) : b.row_range(index * rows, rows);
}

void add_factor(Context& context, const FusedSlot& slot, const ExpertPair& pair, std::int64_t expert, std::size_t which,
                const ComponentRange& range) {
  if (range.count == 0) return;
  Factor factor;
  factor.site.module = experts_module(*slot.experts);
  factor.site.expert = expert;
  if (slot.parameter->projections.empty())
    factor.site.parameter = slot.parameter->name;
  else
    factor.site.projection = slot.parameter->projections[which];
  factor.a = pair.a.row_range(range.first, range.count);
  factor.b = rows_of(pair.b, *slot.parameter, which).col_range(range.first, range.count);
  factor.out = factor.b.rows, factor.in = factor.a.cols, factor.rank = range.count;
  factor.scale = slot.scale;
  context.reading.factors.factors.push_back(std::move(factor));
}

void decode_matrix(Context& context, const FusedSlot& slot) {
  const Pair pair = pair_of(context, *slot.slot);
  Factor factor;
  factor.site = {experts_module(*slot.experts), slot.parameter->name, -1, Projection::none};
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = slot.scale;
  factor.a = pair.a, factor.b = pair.b;
  context.reading.factors.factors.push_back(std::move(factor));
}

void check_stack(const Context& context, const FusedSlot& slot, const FusedForm& form) {
  if (slot.stacked() && slot.parameter->projections.size() == 2) {
    const std::int64_t out = form.orientation == Orientation::natural ? slot.b_width : slot.a_width;
    if (out % 2 != 0) {
      context.at(slot.slot->b)
          .fail(ErrorCode::LO_SHAPE, {.problem = "gate and up together have an odd number of rows",
                                      .expected = "2 I rows",
                                      .got = std::to_string(out)});
    }
  }
}

void decode_stack(Context& context, const FusedSlot& slot, const FusedForm& form, const Components& components) {
  context.reading.factors.expert_counts.push_back({experts_module(*slot.experts), slot.num_experts});
  const std::size_t parts = std::max<std::size_t>(1, slot.parameter->projections.size());
  for (std::int64_t e = 0; e < slot.num_experts; ++e) {
    const ExpertPair pair = expert_pair(slot, form, e);
    for (std::size_t p = 0; p < parts; ++p) add_factor(context, slot, pair, e, p, components.range(e, p));
  }
}

// Input and output embeddings are saved whole when they were resized or targeted (save_embedding_layers).
bool is_embedding(const Model& model, std::string_view module) {
  for (const auto g : {Generation::v4, Generation::v5}) {
    if (const auto& tree = model.tree(g)) {
      if (module == tree->input_embedding || module == tree->output_embedding) return true;
    }
  }
  const std::string_view leaf = module.substr(module.rfind('.') == std::string_view::npos ? 0 : module.rfind('.') + 1);
  return leaf == "embed_tokens" || leaf == "lm_head";
}

// Whether the tensor is a part of PEFT's wrapper that adds nothing: the module before training, or a tensor that the
// file also has under the module's own name.
bool is_repeated(Context& context, const Key& key, const Unwrapped& module, const std::string& name) {
  auto& anomalies = context.reading.anomalies;
  if (module.part == WrapperPart::original) {
    anomalies.push_back(name + " is what the module was before training (original_module): it is not used");
    return true;
  }
  const std::string own = module.module + "." + std::string(key.suffix);
  const TensorFile& file = *context.adapter.weights;
  if (module.part == WrapperPart::none || !(file.find(std::string(kPrefix) + own) || file.find(own))) return false;
  anomalies.push_back(name + " is not used: PEFT takes " + own);
  return true;
}

// Leaves out a pair on a module that the model does not have. Models that came with transformers 5 have no tree of 4;
// their checkpoints, and adapters with a pair for each expert, spell modules as the table's renaming says.
bool is_absent(Context& context, const Slot& slot) {
  const std::string module(slot.module);
  const auto in_v4 = context.model.has(Generation::v4, module);
  auto in_v5 = context.model.has(Generation::v5, module);
  if (in_v5 == false && !in_v4)
    in_v5 = context.model.has(Generation::v5, context.model.rename(module, Generation::v4, Generation::v5));
  const bool v4 = in_v4.value_or(!in_v5), v5 = in_v5.value_or(!in_v4);
  if (v4 || v5) return false;
  context.leave_out(slot, ErrorCode::LO_TARGET, "the model has no module " + module);
  return true;
}

void add_known_dense(Context& context, const Slot& slot, const Pair& pair, double scale) {
  const std::string module(slot.module);
  const std::string now = context.model.rename(module, Generation::v4, Generation::v5);
  if (context.model.has(Generation::v5, module).value_or(false))
    check_weight_shape(context, slot, module, pair, Generation::v5);
  else if (context.model.v4)
    check_weight_shape(context, slot, module, pair, Generation::v4);
  else
    check_weight_shape(context, slot, now, pair, Generation::v5);
  Factor factor;
  factor.site.module = now;
  factor.kind = slot.embedding ? FactorKind::embedding : FactorKind::linear;
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = scale;
  factor.a = pair.a, factor.b = pair.b;
  add_extras(context, slot, factor.site);
  context.reading.factors.factors.push_back(std::move(factor));
}

}  // namespace

void decode_dense(Context& context, const Slot& slot) {
  if (is_absent(context, slot)) return;
  const Pair pair = pair_of(context, slot);
  const std::string module(slot.module);
  const auto& targets = context.adapter.config.target_parameters;
  const bool parameter = targets && config::is_named_by(module + ".weight", *targets);
  const Scale scale = scale_of(context, slot.a, pair.rank, parameter ? module + ".weight" : module);
  add_known_dense(context, slot, pair, scale.scale);
}

void add_dense(Context& context, const Slot& slot, const Pair& pair, double scale) {
  if (!is_absent(context, slot)) add_known_dense(context, slot, pair, scale);
}

void add_expert(Context& context, const Slot& slot, const Model::Located& located, const Pair& pair, double scale) {
  const Experts& experts = *located.experts;
  const bool down = located.projection == Projection::down;
  const std::int64_t in = down ? experts.intermediate : experts.hidden;
  const std::int64_t out = down ? experts.hidden : experts.intermediate;
  if ((in != 0 && in != pair.in) || (out != 0 && out != pair.out)) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE,
                            {.problem = "the pair does not fit the expert's projection",
                             .expected = fmt::format("A [r, {}], B [{}, r]", in, out),
                             .got = fmt::format("A {}, B {}", shape_text(context.tensor(slot.a).shape),
                                                shape_text(context.tensor(slot.b).shape)),
                             .hint = "is this the right base model?"});
  }
  Factor factor;
  factor.site = {experts_module(experts), "", located.expert, located.projection};
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = scale;
  factor.a = pair.a, factor.b = pair.b;
  add_extras(context, slot, factor.site);
  context.reading.factors.factors.push_back(std::move(factor));
}

void decode_per_expert(Context& context, const Slot& slot, const Model::Located& located) {
  const Pair pair = pair_of(context, slot);
  add_expert(context, slot, located, pair, scale_of(context, slot.a, pair.rank, std::string(slot.module)).scale);
}

void decode_fused(Context& context, const std::vector<Slot>& slots, const std::vector<Model::Located>& located) {
  if (slots.empty()) return;
  const std::vector<FusedSlot> fused = assign_parameters(context, slots, located);
  const FusedForm form = decide_form(context, fused);
  context.reading.layout = form.layout;
  for (const FusedSlot& slot : fused) check_stack(context, slot, form);
  // This is most of the work, because it reads the factors.
  std::vector<Components> components(fused.size());
  parallel_for(fused.size(), thread_count(context.options.threads), [&](std::size_t i, int) {
    if (fused[i].stacked()) components[i] = find_components(context, fused[i], form);
  });
  for (std::size_t i = 0; i < fused.size(); ++i) {
    if (fused[i].stacked())
      decode_stack(context, fused[i], form, components[i]);
    else
      decode_matrix(context, fused[i]);
  }
}

void decode_single(Context& context, const Single& single) {
  const Key& key = single.key;
  const std::string name(context.tensor(single.tensor).name);
  const Unwrapped unwrapped = unwrap(key.module);
  const std::string& module = unwrapped.module;
  if (is_repeated(context, key, unwrapped, name)) return;
  std::optional<ExtraKind> kind;
  if (key.kind == KeyKind::token_delta)
    kind = ExtraKind::token_delta;
  else if (unwrapped.part == WrapperPart::saved ||
           config::is_saved_by(config::saved_entries(context.adapter.config), module))
    kind = ExtraKind::saved_module;
  else if (key.suffix.ends_with("bias") && context.adapter.config.bias != "none")
    kind = ExtraKind::base_bias;
  else if (key.suffix.ends_with("weight") && is_embedding(context.model, module))
    kind = ExtraKind::saved_module;
  if (!kind) {
    const bool base = key.suffix == "weight" || key.suffix == "bias";
    context.unused.push_back({name, ErrorCode::LO_UNUSED,
                              base ? "neither LoRA nor in modules_to_save: a weight of the base model?" : "not LoRA"});
    return;
  }
  Extra extra{*kind, {}, std::string(key.suffix), single.tensor};
  if (const auto located = context.model.locate(module); located && located->expert >= 0) {
    const Experts& experts = *located->experts;
    extra.site = {experts_module(experts), "", located->expert, located->projection};
  } else {
    extra.site.module = context.model.rename(module, Generation::v4, Generation::v5);
  }
  context.reading.factors.extras.push_back(std::move(extra));
}

}  // namespace peft::layout
