#include "gguf/types/block_formats.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/float_formats.h"

// Plain loops, which the compiler vectorises for each target. SVE and RISC-V vectors have no size at compile time; NEON
// and scalar code take their place.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gguf/types/block_formats.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace peft::gguf::HWY_NAMESPACE {
namespace {

constexpr std::size_t kSmall = 32, kLarge = 256;  // elements of a block

std::uint8_t byte_at(const std::byte* bytes, std::size_t i) { return std::to_integer<std::uint8_t>(bytes[i]); }

float half_at(const std::byte* bytes) { return f16_to_float(load_bits<std::uint16_t>(bytes)); }

// False for a number that F16 has no finite value for.
bool put_half(float value, std::byte* bytes) {
  const std::uint16_t stored = float_to_f16(value);
  std::memcpy(bytes, &stored, sizeof stored);
  return std::isfinite(f16_to_float(stored));
}

// ---- blocks of 32: one scale, and sometimes a least value

// The low halves of 16 bytes are elements 0 to 15, the high halves 16 to 31.
unsigned nibble_at(const std::byte* codes, std::size_t i) {
  const unsigned both = byte_at(codes, i % (kSmall / 2));
  return i < kSmall / 2 ? both & 15U : both >> 4;
}

void put_nibbles(const std::uint8_t* codes, std::byte* out) {
  for (std::size_t i = 0; i < kSmall / 2; ++i)
    out[i] = static_cast<std::byte>(codes[i] | static_cast<unsigned>(codes[i + kSmall / 2]) << 4);
}

void unpack_q8_0(const std::byte* block, float* values) {
  const float scale = half_at(block);
  std::int8_t codes[kSmall];
  std::memcpy(codes, block + 2, kSmall);
  for (std::size_t i = 0; i < kSmall; ++i) values[i] = scale * static_cast<float>(codes[i]);
}

void unpack_q4_0(const std::byte* block, float* values) {
  const float scale = half_at(block);
  for (std::size_t i = 0; i < kSmall; ++i)
    values[i] = scale * static_cast<float>(static_cast<int>(nibble_at(block + 2, i)) - 8);
}

void unpack_q4_1(const std::byte* block, float* values) {
  const float scale = half_at(block), least = half_at(block + 2);
  for (std::size_t i = 0; i < kSmall; ++i) values[i] = scale * static_cast<float>(nibble_at(block + 4, i)) + least;
}

// The fifth bit of each element, in one word.
unsigned five_bits_at(std::uint32_t high, const std::byte* codes, std::size_t i) {
  return nibble_at(codes, i) | (high >> i & 1U) << 4;
}

void unpack_q5_0(const std::byte* block, float* values) {
  const float scale = half_at(block);
  const auto high = load_bits<std::uint32_t>(block + 2);
  for (std::size_t i = 0; i < kSmall; ++i)
    values[i] = scale * static_cast<float>(static_cast<int>(five_bits_at(high, block + 6, i)) - 16);
}

void unpack_q5_1(const std::byte* block, float* values) {
  const float scale = half_at(block), least = half_at(block + 2);
  const auto high = load_bits<std::uint32_t>(block + 4);
  for (std::size_t i = 0; i < kSmall; ++i)
    values[i] = scale * static_cast<float>(five_bits_at(high, block + 8, i)) + least;
}

// Twice the values of E2M1. The scale of a block is halved instead, so that all products are exact.
constexpr std::array<float, 16> kMxfp4 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128)
float half_of_e8m0(std::uint8_t exponent) {
  const std::uint32_t subnormal = std::uint32_t{0x00200000} << exponent % 2;
  return std::bit_cast<float>(exponent < 2 ? subnormal : static_cast<std::uint32_t>(exponent - 1) << 23);
}

void unpack_mxfp4(const std::byte* block, float* values) {
  const float scale = half_of_e8m0(byte_at(block, 0));
  for (std::size_t i = 0; i < kSmall; ++i) values[i] = scale * kMxfp4[nibble_at(block + 1, i)];
}

// ---- blocks of 256: scales of sixteen or of 32 elements, themselves scaled

// Scales and least values of eight times 32 elements, 6 bits each in 12 bytes.
struct SixBits {
  std::array<std::uint8_t, 8> scales, least;
};
SixBits six_bits(const std::byte* bytes) {
  SixBits result{};
  for (std::size_t i = 0; i < 4; ++i) {
    const unsigned a = byte_at(bytes, i), b = byte_at(bytes, 4 + i), both = byte_at(bytes, 8 + i);
    result.scales[i] = static_cast<std::uint8_t>(a & 63U);
    result.least[i] = static_cast<std::uint8_t>(b & 63U);
    result.scales[4 + i] = static_cast<std::uint8_t>((both & 15U) | (a >> 6) << 4);
    result.least[4 + i] = static_cast<std::uint8_t>(both >> 4 | (b >> 6) << 4);
  }
  return result;
}

// Q4_K and Q5_K. `high` holds the fifth bits: bit s of byte i belongs to element i of the s-th 32. Null: there is none.
void unpack_k(const std::byte* block, const std::byte* high, const std::byte* codes, float* values) {
  const float scale = half_at(block), least = half_at(block + 2);
  const SixBits six = six_bits(block + 4);
  for (std::size_t s = 0; s < 8; ++s) {
    const float own_scale = scale * static_cast<float>(six.scales[s]);
    const float own_least = least * static_cast<float>(six.least[s]);
    const std::byte* from = codes + s / 2 * 32;
    for (std::size_t i = 0; i < 32; ++i) {
      const unsigned both = byte_at(from, i);
      unsigned code = s % 2 == 0 ? both & 15U : both >> 4;
      if (high != nullptr) code |= (byte_at(high, i) >> s & 1U) << 4;
      values[s * 32 + i] = own_scale * static_cast<float>(code) - own_least;
    }
  }
}

void unpack_q4_k(const std::byte* block, float* values) { unpack_k(block, nullptr, block + 16, values); }
void unpack_q5_k(const std::byte* block, float* values) { unpack_k(block, block + 16, block + 48, values); }

// Four low bits and two high bits, in halves of 128 elements; a scale of 8 bits for each sixteen elements.
void unpack_q6_k(const std::byte* block, float* values) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float scale = half_at(block + 208);
  for (std::size_t at = 0; at < kLarge; ++at) {
    const std::size_t half = at / 128, quarter = at % 128 / 32, i = at % 32;
    const unsigned both = byte_at(low, half * 64 + quarter % 2 * 32 + i);
    const unsigned code = (quarter < 2 ? both & 15U : both >> 4) | (byte_at(high, half * 32 + i) >> 2 * quarter & 3U)
                                                                       << 4;
    const float own = scale * static_cast<float>(static_cast<std::int8_t>(byte_at(scales, at / 16)));
    values[at] = own * static_cast<float>(static_cast<int>(code) - 32);
  }
}

// ---- packing

// The largest magnitude. Those of numbers are ordered like their bits, and integers are what compilers vectorise here.
float largest_of(const float* values) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < kSmall; ++i)
    largest = std::max(largest, std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU);
  return std::bit_cast<float>(largest);
}

// As std::round does it, for numbers that an int holds. What is added is the largest number below one half: with one
// half, the number below one half would become 1.
int nearest_code(float value) { return static_cast<int>(value + std::copysign(0x1.fffffep-2F, value)); }

// 1 / scale. 0 where that is not finite: such a scale is stored as 0, and no code matters.
float inverse_of(float scale) {
  const float inverse = scale == 0 ? 0 : 1 / scale;
  return std::isfinite(inverse) ? inverse : 0;
}

bool pack_q8_0(const float* values, std::byte* block) {
  const float scale = largest_of(values) / 127, inverse = inverse_of(scale);
  if (!put_half(scale, block)) return false;
  std::int8_t codes[kSmall];
  for (std::size_t i = 0; i < kSmall; ++i) codes[i] = static_cast<std::int8_t>(nearest_code(values[i] * inverse));
  std::memcpy(block + 2, codes, kSmall);
  return true;
}

// The number that is furthest from zero becomes code 0, which stands for -8.
bool pack_q4_0(const float* values, std::byte* block) {
  float furthest = 0;
  for (std::size_t i = 0; i < kSmall; ++i)
    if (std::abs(furthest) < std::abs(values[i])) furthest = values[i];
  const float scale = furthest / -8, inverse = inverse_of(scale);
  if (!put_half(scale, block)) return false;
  std::uint8_t codes[kSmall];
  for (std::size_t i = 0; i < kSmall; ++i) {
    const float scaled = values[i] * inverse;
    codes[i] = static_cast<std::uint8_t>(std::min(15, static_cast<int>(scaled + 8.5F)));
  }
  put_nibbles(codes, block + 2);
  return true;
}

// The nearest of the sixteen values, the first of two that are as near. ggml asks log2f for the exponent, which rounds
// up just below a power of two; so the same function is asked here.
bool pack_mxfp4(const float* values, std::byte* block) {
  const float largest = largest_of(values);
  const float exponent = largest > 0 ? std::floor(std::log2(largest)) - 2 + 127 : 0;
  const auto stored = static_cast<std::uint8_t>(std::max(exponent, 0.0F));
  const float scale = half_of_e8m0(stored);
  float distance[kSmall];
  std::uint8_t codes[kSmall] = {};
  for (std::size_t i = 0; i < kSmall; ++i) distance[i] = std::abs(kMxfp4[0] * scale - values[i]);
  for (std::size_t code = 1; code < kMxfp4.size(); ++code) {
    const float value = kMxfp4[code] * scale;
    for (std::size_t i = 0; i < kSmall; ++i) {
      const float here = std::abs(value - values[i]);
      codes[i] = here < distance[i] ? static_cast<std::uint8_t>(code) : codes[i];
      distance[i] = std::min(here, distance[i]);
    }
  }
  block[0] = static_cast<std::byte>(stored);
  put_nibbles(codes, block + 1);
  return true;
}

constexpr std::array<BlockFormat, 9> kFormats = {{{GgmlType::q4_0, unpack_q4_0, pack_q4_0},
                                                  {GgmlType::q4_1, unpack_q4_1},
                                                  {GgmlType::q5_0, unpack_q5_0},
                                                  {GgmlType::q5_1, unpack_q5_1},
                                                  {GgmlType::q8_0, unpack_q8_0, pack_q8_0},
                                                  {GgmlType::q4_k, unpack_q4_k},
                                                  {GgmlType::q5_k, unpack_q5_k},
                                                  {GgmlType::q6_k, unpack_q6_k},
                                                  {GgmlType::mxfp4, unpack_mxfp4, pack_mxfp4}}};

const BlockFormat* formats() { return kFormats.data(); }

}  // namespace
}  // namespace peft::gguf::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::gguf {

HWY_EXPORT(formats);

std::span<const BlockFormat> block_formats() {
  return {HWY_DYNAMIC_DISPATCH(formats)(), HWY_STATIC_DISPATCH(kFormats).size()};
}

const BlockFormat* find_block_format(GgmlType type) {
  const std::span<const BlockFormat> formats = block_formats();
  const auto row = std::ranges::find(formats, type, &BlockFormat::type);
  return row == formats.end() ? nullptr : &*row;
}

bool can_pack(GgmlType type) {
  const BlockFormat* format = find_block_format(type);
  return format != nullptr && format->pack != nullptr;
}

bool pack_blocks(GgmlType type, std::span<const float> values, std::byte* out) {
  const BlockFormat& format = *find_block_format(type);
  const GgmlTypeInfo& sizes = info(type);
  const auto elements = static_cast<std::size_t>(sizes.block);
  for (std::size_t begin = 0; begin < values.size(); begin += elements, out += sizes.block_bytes)
    if (!format.pack(values.data() + begin, out)) return false;
  return true;
}

void unpack_blocks(GgmlType type, std::span<const std::byte> blocks, float* out) {
  const BlockFormat& format = *find_block_format(type);
  const GgmlTypeInfo& sizes = info(type);
  for (std::size_t begin = 0; begin < blocks.size(); begin += sizes.block_bytes, out += sizes.block)
    format.unpack(blocks.data() + begin, out);
}

}  // namespace peft::gguf
#endif
