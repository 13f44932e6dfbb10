// Q8_0: 32 elements of a row as one scale of 16 bits and 32 codes of 8 bits. Rounded as ggml's reference does it, bit
// for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace peft::gguf {

inline constexpr std::size_t kQ8Elements = 32, kQ8Bytes = 34;  // of a block

// `values` fill whole blocks. False when the scale of a block does not fit 16 bits.
bool quantise_q8_0(std::span<const float> values, std::byte* out);

void dequantise_q8_0(std::span<const std::byte> blocks, float* out);

}  // namespace peft::gguf
