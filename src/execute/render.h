// Fills a buffer with part of a planned tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "execute/op.h"

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

}  // namespace peft::execution
