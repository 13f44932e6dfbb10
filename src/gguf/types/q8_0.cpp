#include "gguf/types/q8_0.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_formats.h"

namespace peft::gguf {
namespace {

constexpr float kLargestCode = 127;

}  // namespace

bool quantise_q8_0(std::span<const float> values, std::byte* out) {
  for (std::size_t begin = 0; begin < values.size(); begin += kQ8Elements, out += kQ8Bytes) {
    const auto block = values.subspan(begin, kQ8Elements);
    float largest = 0;
    for (const float value : block) largest = std::max(largest, std::abs(value));
    const float scale = largest / kLargestCode, inverse = scale == 0 ? 0 : 1 / scale;
    const std::uint16_t stored = float_to_f16(scale);
    if (!std::isfinite(f16_to_float(stored))) return false;
    std::memcpy(out, &stored, sizeof stored);
    for (std::size_t i = 0; i < kQ8Elements; ++i)
      out[sizeof stored + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(block[i] * inverse)));
  }
  return true;
}

void dequantise_q8_0(std::span<const std::byte> blocks, float* out) {
  for (std::size_t begin = 0; begin < blocks.size(); begin += kQ8Bytes) {
    std::uint16_t stored = 0;
    std::memcpy(&stored, blocks.data() + begin, sizeof stored);
    const float scale = f16_to_float(stored);
    for (std::size_t i = 0; i < kQ8Elements; ++i)
      *out++ = scale * static_cast<float>(static_cast<std::int8_t>(blocks[begin + sizeof stored + i]));
  }
}

}  // namespace peft::gguf
