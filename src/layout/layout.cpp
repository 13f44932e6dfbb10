#include "peft/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "base/text.h"
#include "config/peft_rules.h"
#include "layout/decode/decode.h"
#include "layout/forms.h"
#include "layout/gguf/decode.h"
#include "layout/keys.h"
#include "layout/mlx/read.h"
#include "layout/stacked.h"
#include "model/path.h"
#include "peft/error.h"

namespace peft {
namespace {

constexpr std::array kLayouts = {
    LayoutInfo{
        Layout::peft_per_expert, "peft-per-expert",
        "PEFT (any version) on transformers 4; NeMo, ms-swift, prime-rl exports",
        "PEFT on transformers 4, PEFT >= 0.19 on 5 (converts while loading), vLLM, SGLang, llama.cpp's converter",
        "<experts>.<e>.<projection>.lora_{A,B}.weight", "[r, in]", "[out, r]",
        "one pair per expert and projection; routers and shared experts are ordinary modules"},
    LayoutInfo{Layout::peft_fused, "peft-fused", "PEFT >= 0.19.1 on transformers 5", "PEFT >= 0.19.1, vLLM (3-D mode)",
               "<experts>.base_layer.lora_{A,B}.weight (gate_up_proj), <experts>.lora_{A,B}.weight (down_proj)",
               "[E * r, in], row e * r + k", "[out, r * E], column k * E + e",
               "swaps in and out unless the experts class says is_transposed = True"},
    LayoutInfo{Layout::peft_fused_0_19_0, "peft-fused-0.19.0", "PEFT 0.19.0", "PEFT 0.19.0", "as peft-fused",
               "[E * r, out or in], row e * r + k", "[in or out, r * E], column k * E + e",
               "swaps only if is_transposed = True: the reverse of later versions"},
    LayoutInfo{Layout::peft_fused_0_18, "peft-fused-0.18", "PEFT 0.17 and 0.18", "PEFT 0.17 and 0.18", "as peft-fused",
               "[E * r, d1], row e * r + k", "[d2, r * E], column k * E + e",
               "never swaps: natural where the parameter is stored [E, in, out], reversed where it is [E, out, in]"},
    LayoutInfo{Layout::unsloth_grouped, "unsloth-grouped", "Unsloth, February to September 2026", "Unsloth",
               "as peft-fused", "[E * r, in], row e * r + k", "[out, E * r], column e * r + k",
               "lora_B grouped by expert; marked lora_B_layout = grouped_by_expert in newer files, else --b-packing"},
    LayoutInfo{Layout::gguf, "gguf", "llama.cpp's convert_lora_to_gguf.py", "llama.cpp, and what is built on it",
               "blk.<layer>.ffn_{gate,up,down}_exps.weight.lora_{a,b}", "[E, r, in]", "[E, out, r]",
               "a file, not a folder; scale is alpha / rank with one alpha a file; rows of q and k are permuted in "
               "architecture llama",
               AdapterForm::gguf, "adapter.gguf"},
    LayoutInfo{Layout::tinker, "tinker", "Tinker; vLLM's shared LoRAs; SGLang",
               "tinker-cookbook, vLLM >= 0.32 (enable_moe_shared_loras), SGLang",
               "<experts>.{w1,w2,w3}.lora_{A,B}.weight (gate, down, up)", "[E or 1, r, in]", "[E or 1, out, r]",
               "1 on the first axis: all experts share that side; one r and lora_alpha a file"},
    LayoutInfo{Layout::mlx, "mlx", "MLX-LM", "MLX-LM", "<experts of MLX-LM>.<projection>.lora_{a,b}",
               "[E, r, in]; dense [in, r]", "[E, out, r]; dense [r, out]",
               "one rank and one scale a file; num_layers counts from the last layer", AdapterForm::mlx,
               "adapters.safetensors"},
    LayoutInfo{Layout::megatron_bridge, "megatron-bridge", "Megatron-Bridge, for models of fused experts",
               "Megatron-Bridge", "<experts>.{gate_up_proj,down_proj}.lora_{A,B}.weight", "[E, r, in]",
               "[E, out, r], gate's rows before up's",
               "twice the rank where gate and up do not share lora_A; by its source, not run"},
    LayoutInfo{
        Layout::sglang, "sglang", "tools for SGLang", "SGLang", "<experts>.{gate_up_proj,down_proj}.lora_{A,B}.weight",
        "[E or 1, r, in]; gate_up_proj [E or 1, 2 r, in]", "[E or 1, out, r], gate's rows before up's",
        "1 on the first axis of gate_up_proj's lora_A and of down_proj's lora_B: all experts share that side; by "
        "its source, not run"},
    LayoutInfo{Layout::veomni, "veomni", "VeOmni", "VeOmni",
               "<experts>.{gate_proj,up_proj,down_proj}.lora_{A,B}.weight", "[E, r, in], or [r, in] for all experts",
               "[E, out, r], or [out, r] for all experts",
               "veomni_lora in the config says which; one r and lora_alpha a file"},
    LayoutInfo{Layout::ktransformers, "ktransformers", "KTransformers", "KTransformers",
               "layers.<layer>.experts.{gate,up,down}_lora_{a,b}, in fused_expert_lora.safetensors", "[E, r, in]",
               "[E, out, r]",
               "everything else in adapter_model.safetensors; one r and lora_alpha a file; all three "
               "projections are there"},
    LayoutInfo{Layout::nemo, "nemo", "NeMo Automodel", "NeMo Automodel; PEFT >= 0.19.1", "as peft-fused",
               "[E * r, in], row e * r + k", "[out, r * E], column k * E + e",
               "automodel_peft_config.json says paramwrapper_layout = peft-0.19.1; peft-0.18 there is "
               "peft-fused-0.18; one r and lora_alpha a file"},
};

using layout::Context;
using layout::Slot;

std::optional<Model::Located> locate(Context& context, const Slot& slot) {
  try {
    return context.model.locate(slot.module);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::LO_EXPERT) throw;
    context.leave_out(slot, ErrorCode::LO_EXPERT, error.detail().problem);
    return Model::Located{};  // experts == nullptr: the slot was left out
  }
}

// Leaves out pairs of experts when the modules of the model are known and there are no experts.
bool refuse_experts(Context& context, const Slot& slot) {
  const Model& model = context.model;
  const std::string module = std::string(slot.module) + ".";
  const bool known = model.v4 || model.v5;
  const bool has =
      model.has(Generation::v4, slot.module).value_or(false) || model.has(Generation::v5, slot.module).value_or(false);
  if (!known || has || !model.experts.empty() || (slot.depth == 0 && module.find(".experts.") == std::string::npos))
    return false;
  context.leave_out(slot, ErrorCode::LO_TARGET,
                    fmt::format("the base has no experts: its model_type is {}", model.model_type));
  return true;
}

// Pairs that hold all experts of a layer can only be read with the family's facts.
void require_family(const Context& context, const Slot& slot) {
  if (slot.depth == 0 && !slot.module.ends_with(".experts")) return;
  if (!context.model.experts.empty()) return;
  std::string notes;
  for (const auto& note : context.model.notes) notes += (notes.empty() ? "" : "; ") + note;
  context.at(slot.a).fail(ErrorCode::MD_NEEDED,
                          {.problem = "this pair holds all experts of a layer, and the model is not known",
                           .expected = "--base with the model, or --family with its type",
                           .got = notes});
}

void check_asked_layout(const Context& context) {
  const auto& asked = context.options.layout;
  const Layout found = context.reading.layout;
  const bool own_form = !layout::is_peft(found);
  if (!asked || *asked == found || (!context.reading.has_experts && !own_form)) return;
  // The fused layouts differ in what their files mean, not in how they look.
  if (layout::is_fused(*asked) && layout::is_fused(found)) return;
  at(context.adapter.weights->path())
      .fail(ErrorCode::LO_LAYOUT, {.problem = "the file is not in the layout that was named",
                                   .expected = std::string(info(*asked).name),
                                   .got = found == Layout::peft_per_expert ? "one pair per expert and projection"
                                          : layout::is_fused(found)        ? "pairs that hold all experts"
                                                                           : std::string(info(found).name)});
}

// Most files are sorted: then nothing is moved. Otherwise numbers are sorted, because factors are large, and then each
// factor moves once.
template <class List, class Less>
void sort_if_needed(List& list, const Less& less) {
  if (std::is_sorted(list.begin(), list.end(), less)) return;
  std::vector<std::size_t> order(list.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return less(list[x], list[y]); });
  List sorted;
  sorted.reserve(list.size());
  for (const std::size_t place : order) sorted.push_back(std::move(list[place]));
  list = std::move(sorted);
}

// Factors in natural order of modules, then by expert and projection.
void sort_factors(Factors& factors) {
  sort_if_needed(factors.factors, [](const Factor& x, const Factor& y) { return site_less(x.site, y.site); });
  sort_if_needed(factors.extras, [](const Extra& x, const Extra& y) {
    if (x.site.module != y.site.module) return natural_less(x.site.module, y.site.module);
    return x.site.expert < y.site.expert;
  });
  auto& counts = factors.expert_counts;
  sort_if_needed(counts, [](const ExpertCount& x, const ExpertCount& y) {
    return x.module != y.module ? natural_less(x.module, y.module) : x.count > y.count;
  });
  counts.erase(std::unique(counts.begin(), counts.end(),
                           [](const ExpertCount& x, const ExpertCount& y) { return x.module == y.module; }),
               counts.end());
}

void warn_of_config(Context& context) {
  const AdapterConfig& config = context.adapter.config;
  auto& warnings = context.reading.factors.warnings;
  const auto& extras = context.reading.factors.extras;
  const bool biases =
      std::any_of(extras.begin(), extras.end(), [](const Extra& e) { return e.kind == ExtraKind::base_bias; });
  if (config.bias != "none" && !biases) {
    warnings.push_back(
        fmt::format("bias = {}, but the file holds no bias: PEFT before 0.21 trained them and did not save them; "
                    "nothing can bring them back",
                    config.bias));
  }
  for (const auto& key : config.unknown)
    warnings.push_back("unknown config key " + key + ": kept as it is; PEFT ignores it");
  const std::string& init = config.init_lora_weights;
  if (config::changes_base(init)) {
    warnings.push_back(
        fmt::format("init_lora_weights = {} changed the base model: the factors belong to the changed base, not to "
                    "the original one",
                    init));
  }
}

// The pairs of a file in PEFT's form, by the layout of its experts.
struct PeftPairs {
  std::vector<Slot> dense, fused, stacked;
  std::vector<Model::Located> fused_at;
  const Slot* per_expert = nullptr;  // one of them
};

void require_one_layout(const Context& context, const PeftPairs& pairs) {
  const int layouts =
      (pairs.per_expert != nullptr ? 1 : 0) + (pairs.fused.empty() ? 0 : 1) + (pairs.stacked.empty() ? 0 : 1);
  if (layouts < 2) return;
  const Slot& odd = pairs.fused.empty() ? pairs.stacked.front() : pairs.fused.front();
  context.at(odd.a).fail(
      ErrorCode::LO_LAYOUT,
      {.problem = "some experts are stacked, others have pairs of their own", .expected = "one layout", .got = "both"});
}

void read_peft(Context& context) {
  layout::Slots found = layout::collect_slots(context.adapter, context.options.ignore_unused);
  context.unused = std::move(found.unused);
  PeftPairs pairs;
  for (const Slot& slot : found.slots) {
    if (layout::is_empty_stack(context.adapter, slot)) continue;
    const bool is_module = context.model.has(Generation::v4, slot.module).value_or(false) ||
                           context.model.has(Generation::v5, slot.module).value_or(false);
    if (!is_module && layout::is_stacked(context.adapter, slot)) {
      pairs.stacked.push_back(slot);
      continue;
    }
    const auto located = locate(context, slot);
    if (!located && refuse_experts(context, slot)) continue;
    if (!located) {
      require_family(context, slot);
      pairs.dense.push_back(slot);
    } else if (located->experts == nullptr) {
      continue;
    } else if (located->expert >= 0) {
      layout::decode_per_expert(context, slot, *located);
      pairs.per_expert = &slot;
    } else {
      pairs.fused.push_back(slot);
      pairs.fused_at.push_back(*located);
    }
  }
  require_one_layout(context, pairs);
  Reading& reading = context.reading;
  const layout::StackedForm* form = pairs.stacked.empty() ? nullptr : &layout::stacked_form(context, pairs.stacked);
  bool tinker = false;  // by a name that only its files have
  for (const Slot& slot : pairs.dense) {
    const bool may_be_tinker = form == nullptr || form->layout == Layout::tinker;
    const std::string module =
        may_be_tinker ? layout::from_tinker(context.model, slot.module) : std::string(slot.module);
    tinker = tinker || module != slot.module;
    Slot named = slot;
    named.module = module;
    layout::decode_dense(context, named);
  }
  for (const Slot& slot : pairs.stacked)
    for (const layout::NamedPair& pair : layout::stacked_pairs(context, *form, slot)) layout::add_pair(context, pair);
  reading.layout = pairs.per_expert != nullptr ? Layout::peft_per_expert
                   : form != nullptr           ? form->layout
                   : tinker                    ? Layout::tinker
                                               : layout::layout_of(layout::writing_version(context).first);
  layout::decode_fused(context, pairs.fused, pairs.fused_at);
  for (const auto& single : found.singles) layout::decode_single(context, single);
  reading.has_experts = pairs.per_expert != nullptr || !pairs.fused.empty() || !pairs.stacked.empty();
  if (pairs.per_expert != nullptr && pairs.per_expert->outer)
    reading.evidence.insert(reading.evidence.begin(), "one side of a pair is that of all experts: Megatron-Bridge");
  if (pairs.per_expert != nullptr)
    reading.evidence.insert(reading.evidence.begin(), "every expert and projection has a pair of its own");
  if (form != nullptr) reading.evidence.insert(reading.evidence.begin(), std::string(form->evidence));
}

}  // namespace

std::span<const LayoutInfo> layouts() { return kLayouts; }

const LayoutInfo& info(Layout layout) { return kLayouts[static_cast<std::size_t>(layout)]; }

std::optional<Layout> parse_layout(std::string_view name) {
  for (const auto& row : kLayouts) {
    if (row.name == name) return row.layout;
  }
  return std::nullopt;
}

Reading read(const Adapter& adapter, const Model& model, const ReadOptions& options) {
  require_usable(adapter.config, options.verb);
  Reading reading;
  std::vector<layout::Unused> unused;
  Context context{adapter, model, options, reading, unused};
  switch (adapter.form) {
    case AdapterForm::gguf:
      layout::decode_gguf(context);
      break;
    case AdapterForm::mlx:
      layout::read_mlx(context);
      break;
    case AdapterForm::peft:
      read_peft(context);
  }
  check_asked_layout(context);

  for (const auto& tensor : unused) reading.unused.push_back(tensor.name + ": " + tensor.reason);
  layout::refuse_unused(unused, adapter, options.ignore_unused);
  if (reading.factors.factors.empty() && reading.factors.extras.empty()) {
    const auto tensors = adapter.weights->tensors();
    at(adapter.weights->path())
        .fail(ErrorCode::LO_NONE,
              {.problem = "no LoRA tensor that fits the model",
               .expected = "names such as base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
               .got = tensors.empty() ? "an empty file" : std::string(tensors.front().name),
               .hint = "is this the right base model? See --base and --family"});
  }
  sort_factors(reading.factors);
  warn_of_config(context);
  return reading;
}

std::vector<std::string> module_names(const Adapter& adapter, const std::string& family) {
  if (adapter.form == AdapterForm::gguf)
    return layout::gguf_module_names(adapter, layout::gguf_names_of(adapter, family));
  if (adapter.form == AdapterForm::mlx) return layout::mlx_module_names(adapter);
  const auto tensors = adapter.weights->tensors();
  std::set<std::string_view> paths;
  for (const TensorInfo& tensor : tensors) {
    const layout::Key key = layout::parse_key(tensor.name);
    const bool stacked = key.kind == layout::KeyKind::lora_a && layout::is_stacked_name(model::leaf(key.module)) &&
                         (tensor.shape.size() == 3 || model::leaf(model::parent(key.module)) == "experts");
    paths.insert(stacked ? model::parent(key.module) : key.module);
  }
  return {paths.begin(), paths.end()};
}

std::string left_out(const Reading& reading) {
  constexpr std::size_t kNamed = 5;
  const auto& unused = reading.unused;
  if (unused.empty()) return {};
  std::string text = unused.size() == 1
                         ? "1 tensor that belongs to nothing is left out: "
                         : std::to_string(unused.size()) + " tensors that belong to nothing are left out: ";
  for (std::size_t i = 0; i < std::min(unused.size(), kNamed); ++i)
    text += (i == 0 ? "" : ", ") + unused[i].substr(0, unused[i].find(": "));
  if (unused.size() > kNamed) text += " and " + std::to_string(unused.size() - kNamed) + " more (--json lists all)";
  return text;
}

}  // namespace peft
