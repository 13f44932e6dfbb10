// What llama.cpp calls the modules of each model type (data/gguf_names.json), and the names of LoRA tensors in its
// files.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/model.h"

namespace peft::layout {

// A row: model types whose modules have the same names there.
struct GgufNames {
  struct Tensor {
    std::string name;       // "attn_q"
    std::string module;     // below a layer, or of the whole model: "self_attn.q_proj", "embed_tokens"
    bool permuted = false;  // the rows of each head alternate between its halves
  };
  std::string architecture;
  std::vector<std::string> types;
  std::string prefix;                // of the layers in transformers 5: "model", "model.language_model"
  std::string experts;               // the module of experts below a layer; "" where there are none
  bool fused_gate_up = false;        // the converter keeps gate and up of the experts as one tensor
  std::vector<std::string> changed;  // modules whose weights the converter splits or reorders otherwise
  std::vector<Tensor> tensors;       // in the order of the files we write

  const Tensor* find_module(std::string_view module) const;
  const Tensor* find_tensor(std::string_view name) const;
};
std::span<const GgufNames> all_gguf_names();
const GgufNames* find_gguf_names(std::string_view model_type);
std::vector<std::string> gguf_model_types(std::string_view architecture);  // empty for an unknown architecture

// The stacks of experts, in the order of the files we write.
struct GgufExperts {
  std::string_view name;
  std::vector<Projection> projections;
};
std::span<const GgufExperts> gguf_experts();

// "blk.3.ffn_up_exps.weight.lora_a": layer 3, tensor ffn_up_exps, half 'a'. Of the whole model: layer -1.
struct GgufKey {
  std::int64_t layer = -1;
  std::string_view tensor;
  char half = 'a';
};
std::optional<GgufKey> parse_gguf_key(std::string_view name);
std::string gguf_tensor_name(std::int64_t layer, std::string_view tensor);  // "blk.3.ffn_up_exps.weight"

// What stands above the layers of the model's text part, and the path of a module in it.
std::string layers_prefix(const Model& model, const GgufNames& names);
// A module's layer, and its path below it; layer -1 for a module of the whole model. `prefix` stands above the layers.
struct GgufPlace {
  std::int64_t layer = -1;
  std::string below;
};
GgufPlace gguf_place(const std::string& prefix, const std::string& module);
std::string gguf_module_path(const std::string& prefix, std::int64_t layer, const std::string& module);

}  // namespace peft::layout
