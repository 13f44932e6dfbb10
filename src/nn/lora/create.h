// A new adapter: targets resolved as PEFT does, factors made and given their first values. Some steps also serve an
// adapter that comes from a file.
#pragma once

#include <string>

#include "nn/lora/state.h"

namespace peft::nn {

// From a config. What is not implemented is refused by name (CF_UNSUP): a value that would change the result is never
// ignored.
void create_adapter(PeftModel::Impl& impl, const std::string& name, const LoraConfig& config,
                    const AdapterModelOptions& options);

// Throws CF_UNSUP for an adapter with a head that no language model has.
void require_language_model(const AdapterConfig& config);
// The biases that `bias` of the config names, as the base has them, where the adapter has none yet.
void make_biases(PeftModel::Impl& impl, int id, const AdapterConfig& config);
// Rows of trainable_token_indices, as the base has them.
void make_token_rows(PeftModel::Impl& impl, int id, const AdapterConfig& config);
// Throws CF_TARGET for LoRA, or a copy, on an embedding that has trainable tokens.
void require_rows_apart(const PeftModel::Impl& impl);
// What PEFT warns of: an adapter on one of two tied embeddings.
void warn_of_tied(PeftModel::Impl& impl, int id);

}  // namespace peft::nn
