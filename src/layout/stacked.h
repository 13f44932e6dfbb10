// Experts that are stacked in three dimensions, as several programs write them: <experts>.<tensor>.lora_A.weight
// [E or 1, r, in] and lora_B.weight [E or 1, out, r]. A table says what each program calls the tensors, which
// projections they hold, and how it says that all experts share a side. Everything else of such files is as PEFT writes
// it; rank and alpha are one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layout/decode/named_pair.h"
#include "layout/encode/encoded.h"
#include "peft/model.h"

namespace peft::layout {

// How a form writes a side that all experts share.
enum class Sharing : std::uint8_t {
  first_axis,  // 1 on the first axis, of either side
  outer_axis,  // the same, of lora_A of gate and up, and lora_B of down
  none,
  two_axes,  // both sides at once, as matrices: the pair looks like that of a plain module
};

struct StackedForm {
  struct Tensor {
    std::string_view name;
    std::vector<Projection> projections;  // whose outputs are the rows of lora_B, one after the other
  };
  Layout layout;
  std::vector<Tensor> tensors;
  Sharing sharing;
  bool by_layer;  // tensors are layers.<layer>.experts.<name>_lora_a and _lora_b, in a file of their own
  bool tiled;     // lora_A has a rank for each projection, one after the other; each part of lora_B has its own
  std::string_view evidence;
};
std::span<const StackedForm> stacked_forms();
const StackedForm* find_stacked_form(Layout layout);  // null for other layouts

// Whether a name is that of a stack of experts in some form: "w1", "gate_up_proj".
bool is_stacked_name(std::string_view name);
// Whether a LoRA tensor of that many dimensions is such a stack, or what all experts of a layer share.
bool is_stack_of_experts(std::string_view module, std::size_t dimensions);
// A dense module of Tinker as transformers calls it. Few are called otherwise (gpt_oss: attn for self_attn).
std::string from_tinker(const Model& model, std::string_view module);

// Whether the slot stands for a projection that the experts do not have: Tinker writes w3 of two-layer experts with no
// elements.
bool is_empty_stack(const Adapter& adapter, const Slot& slot);
// Whether the slot is such a stack: its name and the dimensions of its tensors say so.
bool is_stacked(const Adapter& adapter, const Slot& slot);
// The form that all of the stacks have. Throws LO_LAYOUT where there is none, and where several forms write them alike
// and neither the config nor --from says which.
const StackedForm& stacked_form(const Context& context, const std::vector<Slot>& slots);
// The pairs of a stacked slot, one for each projection. Throws LO_SHAPE for shapes that are no stack, LO_EXPERT where
// neither side shows how many experts there are and the model does not either.
std::vector<NamedPair> stacked_pairs(const Context& context, const StackedForm& form, const Slot& slot);

// A side that all experts share, bit for bit, is written once, where the form can say so.
Encoded encode_stacked(const Factors& factors, const Model& model, const TensorFile* file,
                       const EncodeOptions& options);

}  // namespace peft::layout
