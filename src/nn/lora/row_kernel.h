// y += scale * B (A x) for single rows, in one pass over the factors: what decoding one token needs.
#pragma once

#include <cstdint>
#include <span>

namespace peft::nn {

struct RowFactors {
  const float* a;  // [experts, rank, in]
  const float* b;  // [experts, rank, out]
  float scale;
  std::int64_t rank, in, out;
};

// x [rows, in], y [rows, out], dense. Rows begin[i] to begin[i + 1] belong to expert hit[i].
void add_lora_rows(const RowFactors& factors, const float* x, float* y, std::span<const std::int64_t> hit,
                   std::span<const std::int64_t> begin);

}  // namespace peft::nn
