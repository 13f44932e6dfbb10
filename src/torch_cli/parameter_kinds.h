// The parameters of a model, those of all layers that are alike as one row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peft/nn/model.h"
#include "peft/nn/peft_model.h"

namespace peft::torch_cli {

struct ParameterKind {
  std::string name;         // "model.layers.*.self_attn.q_proj.weight"
  std::uint64_t count = 0;  // how many there are
  std::string shapes;       // "[64, 64]", or two when layers differ: "[64, 64], [128, 64]"
  std::uint64_t parameters = 0;
  std::string adapter_shapes;  // "lora_A [8, 64]  lora_B [64, 8]", as they are on disk
  std::uint64_t adapter_parameters = 0;
};

// In the order of the model; then what the adapter has and the model has not.
std::vector<ParameterKind> parameter_kinds(const nn::CausalLM& base, const nn::PeftModel* lora);

// "model.layers.3.mlp.gate" -> "model.layers.*.mlp.gate": numbers between dots.
std::string without_numbers(const std::string& name);

}  // namespace peft::torch_cli
