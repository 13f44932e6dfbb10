// What an encoder is asked for, and what it gives.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gguf/gguf_file.h"
#include "peft/layout.h"
#include "peft/plan.h"

namespace peft::layout {

// A module or parameter the new config targets.
struct TargetEntry {
  std::string name;  // without base_model.model.
  bool parameter = false;
  std::int64_t rank = 0;
  double scale = 1;
};

struct EncodeOptions {
  Layout to = Layout::peft_fused;
  std::optional<Dtype> dtype;                         // cast everything
  bool block_diagonal = false;                        // keep gate and up apart even where they share A
  bool q8_0 = false;                                  // of gguf: pack what fills blocks
  std::shared_ptr<const gguf::GgufFile> gguf_base{};  // of gguf: the model whose names and shapes the adapter gets
  // For engines that are stricter than PEFT:
  bool all_projections = false;  // gate, up or down of experts that have no LoRA: pairs of zeros
  std::string spelling = {};     // single experts by another program's names: "spellings" of the family table
  // One rank and one scale for all pairs of the file: ranks are padded with zeros, other scales folded into B. Layouts
  // whose config has one of each (nemo, tinker, mlx, ...) do so without being asked.
  bool one_rank = false, one_scale = false;
};

// What the config of a file with one rank and one scale says.
struct Uniform {
  std::int64_t rank = 0;
  double scale = 1;
  std::int64_t num_layers = -1;   // mlx: counted from the last one; -1: all
  std::vector<std::string> keys;  // mlx: modules with LoRA, below their layer
};

struct Encoded {
  std::vector<PlannedTensor> tensors;  // empty when there is no file (a config alone)
  std::vector<TargetEntry> targets;
  std::vector<std::string> saved_modules;             // modules carried whole, in the target's spelling
  std::shared_ptr<const gguf::TypedMetadata> gguf{};  // of gguf: the keys of the file
  std::optional<Uniform> uniform;                     // of tinker and mlx
  bool evened = false;                                // one_rank or one_scale changed something
  Exactness exactness = Exactness::bit_exact;
  std::vector<std::string> steps, warnings;
};

}  // namespace peft::layout
