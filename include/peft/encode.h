// Factors become an adapter: the inverse of read() in peft/layout.h.
//
//   std::vector<peft::TensorInMemory> tensors = ...;                   // A and B of each matrix, wherever they lie
//   const auto file = peft::TensorFile::of(tensors, "step 12");
//   const peft::Model model = peft::describe({.base = "Qwen3-30B-A3B"});
//   peft::Factors factors;                                             // views of `file`, one Factor for each matrix
//   const peft::Plan plan = peft::encode(factors, file, model, peft::Layout::peft_fused);
//   peft::execute(plan, "my-lora");
//
// A program that keeps adapters in memory calls execute_in_memory(plan) in place of the last line.
#pragma once

#include <memory>
#include <optional>

#include "peft/layout.h"
#include "peft/plan.h"

namespace peft {

// Plans a new adapter in layout `to`, its weights and its config. The views of `factors` are of `file`, which may lie in
// memory. `config`: what the new one says beside targets, ranks and scales, such as the base model. `dtype`: what
// factors are cast to; absent: their own.
// Nothing is computed before execute(). Throws LO_NO_FORM for what the layout cannot hold, with the way out.
Plan encode(const Factors& factors, std::shared_ptr<const TensorFile> file, const Model& model, Layout to,
            const AdapterConfig& config = {}, std::optional<Dtype> dtype = std::nullopt);

}  // namespace peft
