#include "layout/decode/fused_form.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/text.h"
#include "config/peft_rules.h"
#include "layout/forms.h"
#include "pythonic/python_json.h"

namespace peft::layout {
namespace {

using Parameters = std::vector<const ExpertsForm::Fused*>;

// The parameters that are registered on this very module, in order of registration.
Parameters parameters_of(const Context& context, const Experts& experts, std::string_view module) {
  const bool v4_first = context.model.base_is_v4_only;
  for (const auto g :
       v4_first ? std::array{Generation::v4, Generation::v5} : std::array{Generation::v5, Generation::v4}) {
    Parameters found;
    for (const auto& parameter : g == Generation::v4 ? experts.form->v4 : experts.form->v5) {
      if (experts.fused_module(g, parameter) == module) found.push_back(&parameter);
    }
    if (!found.empty()) return found;
  }
  return {};
}

bool fits(const Context& context, const Experts& experts, const ExpertsForm::Fused& parameter, const Slot& slot) {
  const Dims dims = natural_dims(experts, parameter);
  const std::int64_t a = context.tensor(slot.a).shape[1], b = context.tensor(slot.b).shape[0];
  const auto same = [](std::int64_t known, std::int64_t seen) { return known == 0 || known == seen; };
  const bool natural = same(dims.in, a) && same(dims.out, b);
  if (parameter.dims.size() == 2) return natural;
  return natural || (same(dims.in, b) && same(dims.out, a));
}

// The parameters that the wrappers of the group stand for: the innermost, which was registered first, comes first.
Parameters choose(const Context& context, const Experts& experts, const std::vector<const Slot*>& group) {
  const Slot& outer = *group.back();
  const Parameters all = parameters_of(context, experts, outer.module);
  const auto& targets = context.adapter.config.target_parameters;
  if (targets && !targets->empty()) {
    Parameters targeted;
    for (const auto* parameter : all) {
      if (config::is_named_by(std::string(outer.module) + "." + parameter->name, *targets))
        targeted.push_back(parameter);
    }
    if (targeted.size() == group.size()) return targeted;
    context.at(outer.a).fail(ErrorCode::LO_SHAPE,
                             {.problem = "the nesting of wrappers is not the one target_parameters gives",
                              .expected = fmt::format("{} parameters of {}", targeted.size(), outer.module),
                              .got = fmt::format("{} pairs", group.size()),
                              .hint = "is the config the one of this file?"});
  }
  // No target_parameters (NeMo, hand-made files): every choice in order of registration whose shapes fit.
  std::vector<Parameters> choices;
  for (unsigned bits = 1; bits < (1U << std::min<std::size_t>(all.size(), 8)); ++bits) {
    Parameters choice;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if ((bits >> i & 1U) != 0) choice.push_back(all[i]);
    }
    bool good = choice.size() == group.size();
    for (std::size_t i = 0; good && i < group.size(); ++i) good = fits(context, experts, *choice[i], *group[i]);
    if (good) choices.push_back(std::move(choice));
  }
  if (choices.size() == 1) return choices.front();
  std::string names;
  for (const auto& choice : choices) names += (names.empty() ? "" : " or ") + choice.front()->name;
  context.at(outer.a).fail(choices.empty() ? ErrorCode::LO_SHAPE : ErrorCode::LO_LAYOUT,
                           {.problem = choices.empty() ? "no parameter of the experts has this shape"
                                                       : "the file does not say which parameter this is",
                            .expected = choices.empty() ? std::string("shapes of the model's parameters") : names,
                            .got = fmt::format("A {}, B {}", shape_text(context.tensor(outer.a).shape),
                                               shape_text(context.tensor(outer.b).shape)),
                            .hint = choices.empty() ? "is this the right base model?"
                                                    : "add target_parameters to adapter_config.json, or give --base"});
}

// Number of experts and rank: rows of A are experts x rank.
void count_experts(const Context& context, FusedSlot& fused) {
  const TensorInfo& a = context.tensor(fused.slot->a);
  const TensorInfo& b = context.tensor(fused.slot->b);
  const bool empty =
      a.shape.size() != 2 || b.shape.size() != 2 || a.shape[0] == 0 || a.shape[1] == 0 || b.shape[0] == 0;
  if (empty || a.shape[0] != b.shape[1]) {
    context.at(fused.slot->a)
        .fail(ErrorCode::LO_SHAPE, {.problem = "lora_A and lora_B do not fit each other",
                                    .expected = "A [E * r, width], B [width, r * E]",
                                    .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
  }
  fused.a_width = a.shape[1];
  fused.b_width = b.shape[0];
  const std::int64_t rows = a.shape[0];
  if (fused.parameter->dims.size() == 2) {
    const Scale scale = scale_of(context, fused.slot->a, rows, fused.name);
    fused.rank = rows;
    fused.scale = scale.scale;
    return;
  }
  const auto shape = fused.experts->fused_shape(*fused.parameter);
  std::int64_t experts = shape.empty() || context.model.num_experts_assumed ? 0 : shape[0];
  if (experts == 0) experts = rows / std::max<std::int64_t>(1, context.adapter.config.rank_for(fused.name));
  if (experts <= 0 || rows % experts != 0) {
    context.at(fused.slot->a)
        .fail(ErrorCode::LO_SHAPE, {.problem = "the rows of lora_A are no multiple of the number of experts",
                                    .expected = fmt::format("{} experts x rank", std::max<std::int64_t>(experts, 1)),
                                    .got = fmt::format("{} rows", rows),
                                    .hint = "is this the right base model?"});
  }
  fused.num_experts = experts;
  fused.rank = rows / experts;
  fused.scale = scale_of(context, fused.slot->a, fused.rank, fused.name).scale;
}

std::string_view word(Orientation o) { return o == Orientation::natural ? "natural" : "reversed"; }

std::string shapes_of(const Context& context, const FusedSlot& slot) {
  return fmt::format("{}: lora_A {}, lora_B {}", slot.name, shape_text(context.tensor(slot.slot->a).shape),
                     shape_text(context.tensor(slot.slot->b).shape));
}

// The orientation that the shapes of one slot show; nullopt when both fit.
std::optional<Orientation> vote(const Context& context, const FusedSlot& slot) {
  const Dims dims = natural_dims(*slot.experts, *slot.parameter);
  if (dims.in == 0 || dims.out == 0) return std::nullopt;
  const bool natural = slot.a_width == dims.in && slot.b_width == dims.out;
  const bool reversed = slot.a_width == dims.out && slot.b_width == dims.in;
  if (!natural && !reversed) {
    context.at(slot.slot->a)
        .fail(ErrorCode::LO_SHAPE,
              {.problem = "the pair does not fit the model's parameter",
               .expected = fmt::format("widths {} (in) and {} (out)", dims.in, dims.out),
               .got = fmt::format("lora_A has {} columns, lora_B {} rows", slot.a_width, slot.b_width),
               .hint = "is this the right base model?"});
  }
  if (natural && reversed) return std::nullopt;
  return natural ? Orientation::natural : Orientation::reversed;
}

bool is(const FusedSlot& slot, Projection first) {
  return !slot.parameter->projections.empty() && slot.parameter->projections.front() == first;
}

// Without a model's sizes: gate_up is {H, 2I}, down {I, H}, and the two share H.
std::optional<Orientation> sibling_vote(const std::vector<FusedSlot>& slots) {
  for (const FusedSlot& up : slots) {
    if (up.parameter->projections.size() != 2) continue;
    for (const FusedSlot& down : slots) {
      if (down.slot->module != up.slot->module || !is(down, Projection::down)) continue;
      if (up.a_width == down.b_width && up.b_width == 2 * down.a_width) return Orientation::natural;
      if (up.b_width == down.a_width && up.a_width == 2 * down.b_width) return Orientation::reversed;
    }
  }
  return std::nullopt;
}

// What the user's --orientation means for a parameter: out-in is dP[e] = s B_e A_e in a parameter stored [E, out, in].
Orientation named_orientation(const std::string& orientation, const ExpertsForm::Fused& parameter) {
  return (orientation == "out-in") != parameter.in_out ? Orientation::natural : Orientation::reversed;
}

std::optional<Orientation> decide_by_shapes(Context& context, const std::vector<FusedSlot>& slots) {
  std::optional<Orientation> decided;
  const FusedSlot* witness = nullptr;
  for (const FusedSlot& slot : slots) {
    if (!slot.stacked()) continue;
    const auto seen = vote(context, slot);
    if (!seen) continue;
    if (decided && *decided != *seen) {
      context.at(slot.slot->a)
          .fail(ErrorCode::LO_LAYOUT, {.problem = "the file contradicts itself",
                                       .expected = shapes_of(context, *witness) + " is " + std::string(word(*decided)),
                                       .got = shapes_of(context, slot) + " is " + std::string(word(*seen))});
    }
    if (!decided) witness = &slot;
    decided = seen;
  }
  if (decided) {
    context.reading.evidence.push_back(fmt::format(
        "{}: {} by its shapes{}", shapes_of(context, *witness), word(*decided),
        *decided == Orientation::natural ? ", lora_A has the input width" : ", lora_A has the output width"));
    return decided;
  }
  decided = sibling_vote(slots);
  if (decided)
    context.reading.evidence.push_back(
        fmt::format("gate_up_proj and down_proj share the hidden size: {}", word(*decided)));
  return decided;
}

// The parameter as it was stored where the file was written. PEFT 0.19 and later ran on transformers 5, whatever form
// the base at hand has (checkpoints of qwen3_vl_moe keep the form of transformers 4).
const ExpertsForm::Fused& as_written(const FusedSlot& slot, Layout layout) {
  if (layout == Layout::peft_fused_0_18) return *slot.parameter;
  for (const auto& parameter : slot.experts->form->v5) {
    if (parameter.name == slot.parameter->name && parameter.projections == slot.parameter->projections)
      return parameter;
  }
  return *slot.parameter;
}

// Decides for a square parameter. PEFT's version says which rule it followed, and the family how the parameter is
// stored.
Orientation decide_by_version(Context& context, const FusedSlot& slot, Layout by_version,
                              const std::string& version_evidence) {
  const ExpertsForm& form = *slot.experts->form;
  std::optional<Orientation> seen;
  for (const auto* list : {&form.v5, &form.v4}) {
    for (const auto& parameter : *list) {
      if (parameter.name != slot.parameter->name || parameter.projections != slot.parameter->projections) continue;
      // PEFT 0.19.1 and later ran on transformers 5, 0.17 mostly on 4; only a parameter that was turned in between
      // leaves a doubt.
      if (list == &form.v4 && by_version != Layout::peft_fused_0_18) continue;
      if (list == &form.v4 && context.model.base_is_v5_only) continue;
      if (list == &form.v5 && context.model.base_is_v4_only && by_version == Layout::peft_fused_0_18) continue;
      const Orientation o = orientation_of(by_version, parameter);
      if (seen && *seen != o) {
        context.at(slot.slot->a)
            .fail(ErrorCode::LO_LAYOUT,
                  {.problem = "square, and stored the other way round in transformers 4 and 5: the file fits both",
                   .expected = "--orientation out-in or in-out",
                   .got = shapes_of(context, slot),
                   .hint = "or give --base with the checkpoint it was trained on"});
      }
      seen = o;
    }
  }
  const Orientation decided = seen.value_or(orientation_of(by_version, as_written(slot, by_version)));
  context.reading.evidence.push_back(
      fmt::format("{} is square; {}: {}", shapes_of(context, slot), version_evidence, word(decided)));
  const bool doubtful =
      by_version == Layout::peft_fused && slot.parameter->is_transposed.value_or(false) && !form.v4.empty();
  if (doubtful) {
    context.reading.factors.warnings.push_back(
        "the only expert tensor is square: read as written on transformers 5. PEFT >= 0.19.1 on transformers 4 writes "
        "the "
        "same shapes the other way round; --orientation decides");
  }
  return decided;
}

// Unsloth says a packing for each parameter, and one for the file only where all have it. "mixed" is that of a
// parameter whose layers differ: which of them have which, the file does not say.
void refuse_mixed_packing(const Context& context) {
  const std::string text = context.adapter.config.value("unsloth_fused_expert_lora");
  if (text.empty()) return;
  const pythonic::Json detail = pythonic::parse_json(text, context.adapter.config.file, ErrorCode::CF_VALUE);
  if (!detail.is_object() || !detail.contains("parameters") || !detail.at("parameters").is_object()) return;
  std::string found;
  for (const auto& [name, entry] : detail.at("parameters").items()) {
    const std::string packing = entry.is_object() ? entry.value("lora_B_layout", std::string()) : std::string();
    found += fmt::format("{}{}: {}", found.empty() ? "" : ", ", printable(name), printable(packing));
  }
  if (found.empty()) return;
  at(context.adapter.config.file, "unsloth_fused_expert_lora")
      .fail(ErrorCode::LO_LAYOUT, {.problem = "the columns of lora_B have no one order in this file",
                                   .expected = "lora_B_layout = rank_major or grouped_by_expert",
                                   .got = found,
                                   .hint = "save the adapter again with one order, or --b-packing where all have one"});
}

BPacking decide_packing(Context& context, const std::vector<FusedSlot>& slots) {
  const auto& options = context.options;
  const std::string& marker = context.adapter.config.lora_B_layout;
  std::optional<BPacking> packing = options.b_packing;
  if (!packing && options.layout == Layout::unsloth_grouped) packing = BPacking::grouped_by_expert;
  if (!packing && !marker.empty()) {
    if (marker != "grouped_by_expert" && marker != "rank_major") {
      at(context.adapter.config.file, "lora_B_layout")
          .fail(ErrorCode::LO_LAYOUT,
                {.problem = "unknown packing of lora_B", .expected = "rank_major or grouped_by_expert", .got = marker});
    }
    packing = marker == "grouped_by_expert" ? BPacking::grouped_by_expert : BPacking::rank_major;
    context.reading.evidence.push_back("lora_B_layout = " + marker);
  }
  const bool same =
      std::all_of(slots.begin(), slots.end(), [](const FusedSlot& s) { return s.num_experts <= 1 || s.rank == 1; });
  if (!packing && !same) refuse_mixed_packing(context);
  const bool hints = context.adapter.config.base_model_name_or_path.value_or("").starts_with("unsloth/");
  if (!packing && !same && hints) {
    context.reading.factors.warnings.push_back(
        "the base model's name points to Unsloth, whose versions of February to September 2026 grouped lora_B by "
        "expert "
        "without marking it; read as PEFT writes it, --b-packing grouped-by-expert reads it the other way");
  }
  return packing.value_or(BPacking::rank_major);
}

// The layout that writes this orientation; where several do, the one of the stated version.
Layout name_layout(Context& context, const std::vector<FusedSlot>& slots, Orientation o, BPacking packing,
                   Layout by_version) {
  if (packing == BPacking::grouped_by_expert) return Layout::unsloth_grouped;
  const auto writes = [&](Layout layout) {
    return std::all_of(slots.begin(), slots.end(), [&](const FusedSlot& slot) {
      return !slot.stacked() || orientation_of(layout, as_written(slot, layout)) == o;
    });
  };
  const bool marked = !context.adapter.wrapper_layout.empty();
  if (writes(by_version)) return marked && by_version == Layout::peft_fused ? Layout::nemo : by_version;
  if (marked) {
    context.at(slots.front().slot->a)
        .fail(ErrorCode::LO_LAYOUT, {.problem = "the shapes contradict automodel_peft_config.json",
                                     .expected = "the pairs of " + context.adapter.wrapper_layout,
                                     .got = shapes_of(context, slots.front()) + " is " + std::string(word(o))});
  }
  for (const Layout layout : {Layout::peft_fused_0_18, Layout::peft_fused_0_19_0, Layout::peft_fused}) {
    if (!writes(layout)) continue;
    context.reading.anomalies.push_back(fmt::format(
        "peft_version claims a generation that writes {}, the tensors are {}: PEFT refuses or misreads this file",
        info(by_version).name, info(layout).name));
    return layout;
  }
  return by_version;
}

}  // namespace

std::vector<FusedSlot> assign_parameters(const Context& context, const std::vector<Slot>& slots,
                                         const std::vector<Model::Located>& located) {
  std::vector<FusedSlot> result;
  for (std::size_t i = 0; i < slots.size();) {
    std::vector<const Slot*> group;
    std::size_t j = i;
    for (; j < slots.size() && slots[j].module == slots[i].module; ++j) group.push_back(&slots[j]);
    const Experts& experts = *located[i].experts;
    for (const Slot* slot : group) {
      pair_of(context, *slot);  // dtypes and shapes
      if (slot->magnitude == kNoTensor && slot->b_bias == kNoTensor) continue;
      context.at(slot->a).fail(ErrorCode::CF_UNSUP, {.problem = "DoRA and lora_bias do not exist on parameters"});
    }
    const Parameters chosen = located[i].fused != nullptr && group.size() == 1 ? Parameters{located[i].fused}
                                                                               : choose(context, experts, group);
    for (std::size_t k = 0; k < group.size(); ++k) {
      FusedSlot fused{group[k], &experts, chosen[k], std::string(group[k]->module) + "." + chosen[k]->name};
      count_experts(context, fused);
      result.push_back(std::move(fused));
    }
    i = j;
  }
  return result;
}

FusedForm decide_form(Context& context, const std::vector<FusedSlot>& slots) {
  FusedForm form;
  form.packing = decide_packing(context, slots);
  const auto [version, version_evidence] = writing_version(context);
  const Layout by_version = layout_of(version);
  const auto square = std::find_if(slots.begin(), slots.end(), [](const FusedSlot& s) { return s.stacked(); });
  if (square == slots.end()) return form;

  auto decided = decide_by_shapes(context, slots);
  const auto& options = context.options;
  std::optional<Orientation> asked;
  if (!options.orientation.empty())
    asked = named_orientation(options.orientation, *square->parameter);
  else if (options.layout && is_fused(*options.layout))
    asked = orientation_of(*options.layout, as_written(*square, *options.layout));
  if (decided && asked && *decided != *asked) {
    context.at(square->slot->a)
        .fail(ErrorCode::LO_LAYOUT, {.problem = "the shapes contradict the layout or orientation that was asked for",
                                     .expected = std::string(word(*asked)),
                                     .got = shapes_of(context, *square) + ": " + std::string(word(*decided))});
  }
  if (!decided) decided = asked;
  if (!decided) decided = decide_by_version(context, *square, by_version, version_evidence);
  form.orientation = *decided;
  form.layout = name_layout(context, slots, *decided, form.packing, by_version);
  return form;
}

}  // namespace peft::layout
