// What the golden runner does with one case of each group. A check returns, or throws Failure or peft::Error.
#pragma once

#include <filesystem>

#include "support/golden.h"

namespace peft::testing {

// Per-expert -> every fused layout -> back, against what PEFT's own conversion writes or should write.
void check_convert(const Case& c, const std::filesystem::path& root);
// Files PEFT wrote on fused parameters and dense layers: decoded, moved through every layout and back.
void check_native(const Case& c, const std::filesystem::path& root);
// One true LoRA in every form, and the packings of Unsloth: factors bit for bit, files of one form from another.
void check_consumer(const Case& c, const std::filesystem::path& root);
// adapter_config.json alone: what the migrated config selects on the model of transformers 5.
void check_migrate(const Case& c, const std::filesystem::path& root);
// ... and what configs select on the model they were made for, in each PEFT version; errors by class.
void check_own_targets(const Case& c, const std::filesystem::path& root);
void check_resolve(const Case& c, const std::filesystem::path& root);
// Files of every PEFT version: read without loss, written byte for byte.
void check_written(const Case& c, const std::filesystem::path& root);
void check_trainable_line(const Case& c, const std::filesystem::path& root);
// What Python's `re` answers.
void check_regex(const Case& c, const std::filesystem::path& root);
// LoRA shapes of full-size models from a config.json.
void check_shapes(const Case& c, const std::filesystem::path& root);
// tokenizer.json: ids and texts of the `tokenizers` package, also piece by piece.
void check_tokenizer(const Case& c, const std::filesystem::path& root);

// Merged by PEFT itself, and as well as can be: into every form of the base, in every mode.
void check_merge(const Case& c, const std::filesystem::path& root);
// Corners of the real PEFT: adapters that verbs refuse, and what the others are without a model that runs.
void check_parity(const Case& c, const std::filesystem::path& root);
// Quantised tensors and their values.
void check_quant(const Case& c, const std::filesystem::path& root);
// The module-tree file of a model that a transformers version builds.
std::filesystem::path tree_file_of(const std::filesystem::path& root, const std::string& model,
                                   const std::string& transformers);

}  // namespace peft::testing
