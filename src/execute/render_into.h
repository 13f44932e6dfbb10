// A planned file's tensors rendered into memory that the caller owns: how a model is loaded without a second copy.
#pragma once

#include <cstddef>
#include <span>

#include "peft/plan.h"

namespace peft::execution {

// `destinations` has one span for each tensor of the file, of exactly its size. Checks what execute() checks: values
// that do not fit (NUM_OVERFLOW), NaN and infinity where the plan forbids them, sources that change.
void render_into(const Plan& plan, std::size_t file, std::span<const std::span<std::byte>> destinations, int threads);

}  // namespace peft::execution
