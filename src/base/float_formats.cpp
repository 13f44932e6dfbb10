#include "base/float_formats.h"

namespace peft {
namespace {

template <class Format>
constexpr FloatFormat small(Dtype dtype) {
  return {dtype,
          Format::kSignificandBits,
          Format::kLeastExponent,
          Format::kValueBits,
          [](std::uint64_t bits) { return Format::decode(static_cast<std::uint32_t>(bits)); },
          [](double value) -> std::uint64_t { return Format::encode(value); }};
}

constexpr FloatFormat kFormats[] = {
    {Dtype::f64, 53, -1022, ~0ULL >> 1, [](std::uint64_t bits) { return std::bit_cast<double>(bits); },
     [](double value) { return std::bit_cast<std::uint64_t>(value); }},
    {Dtype::f32, 24, -126, ~0U >> 1,
     [](std::uint64_t bits) { return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits))); },
     [](double value) -> std::uint64_t { return std::bit_cast<std::uint32_t>(static_cast<float>(value)); }},
    small<Float16>(Dtype::f16),
    {Dtype::bf16, BFloat16::kSignificandBits, BFloat16::kLeastExponent, BFloat16::kValueBits,
     [](std::uint64_t bits) { return BFloat16::decode(static_cast<std::uint32_t>(bits)); },
     [](double value) -> std::uint64_t { return double_to_bf16(value); }},  // every NaN becomes 0x7FC0
    small<Float8E5M2>(Dtype::f8_e5m2),
    small<Float8E4M3>(Dtype::f8_e4m3),
    small<Float8E5M2Fnuz>(Dtype::f8_e5m2fnuz),
    small<Float8E4M3Fnuz>(Dtype::f8_e4m3fnuz),
};

}  // namespace

const FloatFormat* float_format(Dtype dtype) {
  for (const FloatFormat& row : kFormats) {
    if (row.dtype == dtype) return &row;
  }
  return nullptr;
}

// The bits of an element are its bytes, the least first.
double decode_float(Dtype dtype, const std::byte* from) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, from, static_cast<std::size_t>(info(dtype).bits) / 8);
  return float_format(dtype)->decode(bits);
}

bool encode_float(Dtype dtype, double value, std::byte* to) {
  const FloatFormat& format = *float_format(dtype);
  const std::uint64_t bits = format.encode(value);
  std::memcpy(to, &bits, static_cast<std::size_t>(info(dtype).bits) / 8);
  return !std::isfinite(value) || std::isfinite(format.decode(bits));
}

}  // namespace peft
