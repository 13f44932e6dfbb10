// From factors to the tensors of a layout, and to what its config must say.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "peft/adapter.h"
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
  std::optional<Dtype> dtype;   // cast everything
  bool block_diagonal = false;  // keep gate and up apart even where they share A
  // For engines that are stricter than PEFT:
  bool all_projections = false;  // gate, up or down of experts that have no LoRA: pairs of zeros
  std::string spelling = {};     // single experts by another program's names: "spellings" of the family table
};

struct Encoded {
  std::vector<PlannedTensor> tensors;  // empty when there is no file (a config alone)
  std::vector<TargetEntry> targets;
  std::vector<std::string> saved_modules;  // modules carried whole, in the target's spelling
  Exactness exactness = Exactness::bit_exact;
  std::vector<std::string> steps, warnings;
};

// `file` gives tensor contents and dtypes; null when only a config is converted. Throws LO_NO_FORM for what the
// layout cannot hold, with the reason and the alternative.
Encoded encode(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options);

}  // namespace peft::layout
