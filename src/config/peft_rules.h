// What PEFT does with single values of a config: names of modules, of tasks and of initializations.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"

namespace peft::config {

// PEFT's suffix rule for lists of names (target_modules, target_parameters, exclude_modules): an entry names what is
// equal to it and what ends with "." + entry.
bool is_named_by(std::string_view name, std::string_view entry);
bool is_named_by(std::string_view name, std::span<const std::string> entries);

// Whether the module's last name is one that PEFT's migration to transformers 5 takes for an expert's projection, also
// on dense and shared modules (peft issue 3711).
bool is_named_like_projection(std::string_view module);

// ---- init_lora_weights, as LoraLayer.update_layer of PEFT 0.21.2 tells its names apart

enum class LoraInit { standard, random, gaussian, orthogonal, pissa, olora, corda, loftq, eva, mica, lora_ga };

// nullopt for a name that PEFT does not know.
std::optional<LoraInit> lora_init(std::string_view init_lora_weights);

// N of pissa_niter_N, the steps of a randomised SVD. nullopt: the whole SVD.
std::optional<int> pissa_iterations(std::string_view init_lora_weights);

// Whether the initialization changes the base model. The adapter is then only a part of the change.
bool changes_base(std::string_view init_lora_weights);

// ---- Modules that PEFT saves whole because of the adapter's task, whether or not the config names them

// The modules that PeftModelForSequenceClassification, -TokenClassification and -QuestionAnswering add to
// modules_to_save. PEFT up to 0.10 saves the heads and writes modules_to_save: null. PEFT 0.13 and later name them
// there.
std::span<const std::string> task_heads(std::string_view task_type);
std::span<const std::string> task_heads(const AdapterConfig& config);

// The entries of modules_to_save, and the heads of the task.
std::vector<std::string> saved_entries(const AdapterConfig& config);

// Whether an entry saves the module or one above it. Here PEFT asks only that the name ends with the entry, without a
// dot before it.
bool is_saved_by(std::span<const std::string> entries, std::string_view module);

}  // namespace peft::config
