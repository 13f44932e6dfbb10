// Renders planned tensors into memory: a part of one, or all tensors of a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "execute/copy/copy_ops.h"
#include "peft/plan.h"

namespace peft::execution {

// One worker's reusable memory for pointers and for rows before conversion.
struct Scratch {
  std::vector<const std::byte*> in_rows;
  std::vector<std::byte*> out_rows;
  std::vector<std::byte> raw;
  std::vector<float> decoded;
};

// Writes the rectangle `part` of the tensor to `out`, row after row without gaps. False when a finite value
// does not fit the tensor's dtype.
bool render(const TensorOps& ops, Dtype dtype, const Rectangle& part, std::byte* out, Scratch& scratch);

// Renders all tensors of a planned file into memory that the caller owns; a model is loaded so without a second copy.
// `destinations` has one span for each tensor, of exactly the tensor's size. Throws what execute() throws: NUM_OVERFLOW
// for values that do not fit, NUM_NONFINITE where the plan forbids NaN and infinity, IO_CHANGED for sources that
// change.
void render_into(const Plan& plan, std::size_t file, std::span<const std::span<std::byte>> destinations, int threads);

}  // namespace peft::execution
