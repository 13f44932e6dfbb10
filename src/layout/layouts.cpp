#include <array>

#include "peft/layout.h"

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
};

}  // namespace

std::span<const LayoutInfo> layouts() { return kLayouts; }

const LayoutInfo& info(Layout layout) { return kLayouts[static_cast<std::size_t>(layout)]; }

std::optional<Layout> parse_layout(std::string_view name) {
  for (const auto& row : kLayouts) {
    if (row.name == name) return row.layout;
  }
  return std::nullopt;
}

}  // namespace peft
