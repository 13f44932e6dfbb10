// Modules that PEFT saves whole because of the adapter's task, whether its config names them or not.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"

namespace peft::config {

// As PeftModelForSequenceClassification, -TokenClassification and -QuestionAnswering add them to modules_to_save.
// PEFT up to 0.10 saves the heads and writes modules_to_save: null. PEFT 0.13 and later name them there.
std::span<const std::string> task_heads(std::string_view task_type);
std::span<const std::string> task_heads(const AdapterConfig& config);

// modules_to_save, and the heads of the task.
std::vector<std::string> saved_entries(const AdapterConfig& config);

// Whether an entry saves the module, or one above it: the name ends with the entry, and PEFT asks for no dot in
// between.
bool is_saved_by(std::span<const std::string> entries, std::string_view module);

}  // namespace peft::config
