#include "layout/keys.h"

#include <array>
#include <utility>

namespace peft::layout {
namespace {

// Cuts the last dotted segment off `path` and returns it.
std::string_view pop_segment(std::string_view& path) {
  const auto dot = path.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? path : path.substr(dot + 1);
  path = dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
  return last;
}

struct Marker {
  std::string_view segment;
  KeyKind kind;
};
constexpr std::array kMarkers = {
    Marker{"lora_A", KeyKind::lora_a},
    Marker{"lora_B", KeyKind::lora_b},
    Marker{"lora_embedding_A", KeyKind::embedding_a},
    Marker{"lora_embedding_B", KeyKind::embedding_b},
    Marker{"lora_magnitude_vector", KeyKind::magnitude},
    Marker{"trainable_tokens_delta", KeyKind::token_delta},
};

// Tensors of other low-rank methods, which are not LoRA however much they look like it.
bool belongs_to_another_method(std::string_view segment) {
  return segment.starts_with("lora_") || segment == "alpha" || segment.starts_with("hada_") ||
         segment.starts_with("lokr_") || segment.starts_with("ia3_") || segment == "dora_scale";
}

KeyKind kind_of(std::string_view segment, std::string_view last) {
  for (const auto& marker : kMarkers) {
    if (marker.segment != segment) continue;
    return marker.kind == KeyKind::lora_b && last == "bias" ? KeyKind::lora_b_bias : marker.kind;
  }
  return KeyKind::other_lora;
}

bool is_marker(std::string_view segment) {
  if (belongs_to_another_method(segment)) return true;
  for (const auto& marker : kMarkers) {
    if (marker.segment == segment) return true;
  }
  return false;
}

int strip_base_layers(std::string_view& module) {
  int depth = 0;
  while (module.ends_with(".base_layer")) {
    module.remove_suffix(std::string_view(".base_layer").size());
    ++depth;
  }
  return depth;
}

}  // namespace

Key parse_key(std::string_view tensor_name) {
  Key key;
  const std::string_view name = tensor_name.starts_with(kPrefix) ? tensor_name.substr(kPrefix.size()) : tensor_name;
  // The marker is the last segment, or stands before ".weight" / ".bias", with an adapter's name between at most.
  // KTransformers writes "layers.3.experts.gate_lora_a".
  for (const auto& [ending, kind] : {std::pair{"_lora_a", KeyKind::lora_a}, std::pair{"_lora_b", KeyKind::lora_b}}) {
    if (!name.starts_with("layers.") || !name.ends_with(ending)) continue;
    key.kind = kind;
    key.module = name.substr(0, name.size() - std::string_view(ending).size());
    key.suffix = name.substr(key.module.size() + 1);
    return key;
  }
  std::string_view module = name;
  const std::string_view last = pop_segment(module);
  std::string_view segment = last;
  for (int step = 0; step < 3 && !is_marker(segment); ++step) segment = pop_segment(module);
  if (!is_marker(segment)) {
    module = name;
    pop_segment(module);
    strip_base_layers(module);
    key.kind = KeyKind::plain;
  } else {
    key.kind = kind_of(segment, last);
    if (key.kind == KeyKind::token_delta && module.ends_with(".token_adapter")) pop_segment(module);
    if (key.kind != KeyKind::token_delta) key.depth = strip_base_layers(module);
  }
  key.module = module;
  key.suffix = name.substr(module.empty() ? 0 : module.size() + 1);
  return key;
}

Unwrapped unwrap(std::string_view module) {
  Unwrapped found{std::string(module), WrapperPart::none};
  std::string rest;
  for (std::string_view path = module; !path.empty();) {
    const std::string_view segment = pop_segment(path);
    const bool original = segment == "original_module";
    if (!path.empty() && (original || segment == "modules_to_save")) {
      constexpr std::string_view kAdapter = ".default";
      if (!original && (rest == kAdapter || rest.starts_with(std::string(kAdapter) + ".")))
        rest.erase(0, kAdapter.size());
      return {std::string(path) + rest, original ? WrapperPart::original : WrapperPart::saved};
    }
    rest.insert(0, "." + std::string(segment));
  }
  return found;
}

}  // namespace peft::layout
