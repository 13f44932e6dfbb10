// Tensors that go along whole beside the factors of a new adapter.
#pragma once

#include "peft/verbs.h"
#include "verbs/new_adapter.h"

namespace peft::verbs {

// All of one adapter's: its magnitudes, biases and saved modules stay what they are.
std::vector<Carried> carry_all(const Input& input);

// Of several adapters: saved modules and biases of the base that only one of them has, or all the same. Throws CF_UNSUP
// for what has no sum (DoRA, lora_bias, trained tokens, one module saved by two). `config` gets what belongs to them.
std::vector<Carried> carry_for_combination(std::span<const Input> inputs, AdapterConfig& config,
                                           std::vector<std::string>& notes);

Carried carry(const TensorFile& file, const TensorInfo& tensor, const Extra& extra);

}  // namespace peft::verbs
