// Arithmetic on numbers that come from files: the result, or nothing when it does not fit.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>

#include "peft/tensor.h"

namespace peft {

template <std::integral T>
constexpr std::optional<T> checked_add(T a, T b) {
  T sum{};
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

template <std::integral T>
constexpr std::optional<T> checked_mul(T a, T b) {
  T product{};
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

enum class SizeFault : std::uint8_t {
  none,
  elements,  // the product of the dimensions does not fit 64 bits
  bits,      // the product times the bits of an element does not fit 64 bits
  fraction,  // the bits do not fill whole bytes (dtypes of 4 and 6 bits)
};

struct TensorSize {
  std::uint64_t bytes = 0;  // 0 unless fault is none
  SizeFault fault = SizeFault::none;
};

// The one place that multiplies dimensions. They are read as unsigned, in order, and every prefix product must fit,
// as in the Rust library: [2^63, 4, 0] is a fault, [0, 2^63, 4] is an empty tensor. An unknown dtype has 0 bits.
constexpr TensorSize tensor_size(std::span<const std::int64_t> shape, int bits_per_element) {
  std::uint64_t elements = 1;
  for (const std::int64_t dimension : shape) {
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(dimension), &elements)) {
      return {0, SizeFault::elements};
    }
  }
  std::uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits_per_element), &bits))
    return {0, SizeFault::bits};
  if (bits % 8 != 0) return {0, SizeFault::fraction};
  return {bits / 8, SizeFault::none};
}

// Bytes of a tensor, or nothing when tensor_size() finds a fault or the dtype is unknown.
inline std::optional<std::uint64_t> tensor_nbytes(Dtype dtype, std::span<const std::int64_t> shape) {
  if (dtype == Dtype::unknown) return std::nullopt;
  const TensorSize size = tensor_size(shape, info(dtype).bits);
  if (size.fault != SizeFault::none) return std::nullopt;
  return size.bytes;
}

}  // namespace peft
