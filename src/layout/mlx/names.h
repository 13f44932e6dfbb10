// What MLX-LM calls the modules that transformers calls otherwise: the experts, which it holds in one switch layer, and
// what stands before the layers.
//
//   model.layers.0.block_sparse_moe.switch_mlp.gate_proj     experts.{0, 1, ...}.w1 of transformers 4
//   model.layers.0.mlp.switch_mlp.down_proj                  experts.{0, 1, ...}.down_proj
//   model.layers.0.mlp.experts.up_proj                       gpt_oss and others, which name it as transformers 5 does
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "layout/decode/named_pair.h"
#include "peft/model.h"

namespace peft::layout {

// A projection of a switch layer, taken apart.
struct SwitchName {
  std::string experts;  // path of the experts module: "model.layers.0.mlp.experts"
  Projection projection = Projection::none;
  const ProjectionNames* per_expert = nullptr;  // what transformers 4 calls the projections there; null: several ways
};
// nullopt: no name of a switch layer.
std::optional<SwitchName> parse_switch_name(std::string_view module);
// The path of a projection's switch layer in this model; "" where MLX-LM's name for it is not known.
std::string switch_name(const Model& model, const Experts& experts, Projection projection);

// Other modules: as transformers calls them (either generation), and as MLX-LM does. `module` is of transformers 5.
std::string from_mlx(const Model& model, std::string_view module);
std::string to_mlx(const Model& model, std::string_view module);

// Why MLX-LM has no place for LoRA on this module of transformers; "" where it has one, as far as is known.
std::string_view missing_in_mlx(const Model& model, std::string_view module);

}  // namespace peft::layout
