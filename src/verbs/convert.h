// A conversion as a plan, with what engines that are stricter than PEFT need beyond the layout.
#pragma once

#include <cstdint>
#include <string>

#include "peft/verbs.h"

namespace peft::verbs {

struct Suiting {
  std::string spelling;          // names of single experts: "spellings" of the family table
  bool all_projections = false;  // missing gate, up or down of experts as pairs of zeros
  bool one_scale = false;        // scales that differ, and rsLoRA, are folded into lora_B
  bool one_rank = false;         // ranks are padded with zeros
  bool any() const { return !spelling.empty() || all_projections || one_scale || one_rank; }
};
struct SuitedPlan {
  Plan plan;
  std::int64_t rank = 0;  // the largest of the file that will be written
};
SuitedPlan plan_suited(const Input& input, const ConvertOptions& options, const Suiting& suiting);

}  // namespace peft::verbs
