// Folders that a training run writes: checkpoints it can go on with, and the trained adapter.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "peft/nn/optimizer.h"
#include "peft/nn/peft_model.h"
#include "peft/train/metrics.h"

namespace peft::nn {

using RunFacts = std::vector<std::pair<std::string, std::string>>;  // names and values that make a run what it is

// OUT/checkpoint-N: adapter_config.json, adapter_model.safetensors, optimizer.safetensors, trainer_state.json. The
// folder appears complete or not at all.
void write_checkpoint(const PeftModel& model, const std::string& adapter, const AdamW& optimizer,
                      const train::RunState& state, const RunFacts& facts, const std::string& folder);
// Fills the adapter's tensors and the optimiser. Throws RS_JOURNAL for a checkpoint of another run.
train::RunState read_checkpoint(PeftModel& model, const std::string& adapter, AdamW& optimizer, const RunFacts& facts,
                                const std::string& folder);
// The values of the adapter alone, of a checkpoint or any folder that PEFT could have written.
void read_adapter_values(PeftModel& model, const std::string& adapter, const std::string& folder);

// The complete checkpoints of a folder, by step.
std::vector<std::pair<std::int64_t, std::string>> checkpoints_in(const std::string& out);
// Removes the oldest checkpoints beyond `limit`, but never the newest one nor that of step `kept`.
void remove_old_checkpoints(const std::string& out, std::int64_t limit, std::int64_t kept);

// adapter_config.json and adapter_model.safetensors in OUT, beside its checkpoints: each file is replaced in one step,
// after both are complete.
void write_trained_adapter(const PeftModel& model, const std::string& adapter, const std::string& out);

}  // namespace peft::nn
