// Tensor names of adapter files, taken apart: module, nesting depth, and what the tensor is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace peft::layout {

enum class KeyKind : std::uint8_t {
  lora_a,
  lora_b,
  lora_b_bias,
  embedding_a,
  embedding_b,
  magnitude,
  token_delta,
  other_lora,  // something else that begins with lora_, or belongs to another method
  plain,       // a weight or bias of the module itself
};

struct Key {
  std::string_view module;  // without base_model.model. and without base_layer
  std::string_view suffix;  // what follows the module, as written on disk: "lora_A.weight", "base_layer.bias"
  int depth = 0;            // how many base_layer. stand between module and LoRA: PEFT's nested parameter wrappers
  KeyKind kind = KeyKind::plain;
};

inline constexpr std::string_view kPrefix = "base_model.model.";

Key parse_key(std::string_view tensor_name);

// PEFT wraps a module that it saves: original_module is what it was before training, modules_to_save what it became.
// A right file names the module alone; bias = "all" and save_embedding_layers write the wrapper's parts too.
enum class WrapperPart : std::uint8_t { none, original, saved };
struct Unwrapped {
  std::string module;  // without the wrapper
  WrapperPart part = WrapperPart::none;
};
Unwrapped unwrap(std::string_view module);

}  // namespace peft::layout
