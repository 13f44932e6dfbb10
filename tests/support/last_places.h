// How far apart two floats are, in last places of their dtype.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>

#include "peft/tensor.h"

namespace peft::testing {

// The number of a value on the line of all values of its dtype: neighbours differ by 1, +0 and -0 are both 0.
inline std::int64_t place_of(const std::byte* at, Dtype dtype) {
  if (dtype == Dtype::f32) {
    std::int32_t bits = 0;
    std::memcpy(&bits, at, sizeof bits);
    return bits < 0 ? -static_cast<std::int64_t>(bits & 0x7fffffff) : bits;
  }
  if (dtype != Dtype::bf16 && dtype != Dtype::f16)
    throw std::runtime_error("last places of this dtype are not counted");
  std::int16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return bits < 0 ? -static_cast<std::int64_t>(bits & 0x7fff) : bits;
}

struct LastPlaces {
  std::int64_t elements = 0, different = 0, largest = 0;  // values that differ, and by how much at most
  void add(const LastPlaces& other) {
    elements += other.elements;
    different += other.different;
    largest = largest > other.largest ? largest : other.largest;
  }
};
inline LastPlaces compare_places(std::span<const std::byte> x, std::span<const std::byte> y, Dtype dtype) {
  if (x.size() != y.size()) throw std::runtime_error("tensors of different sizes");
  const auto width = static_cast<std::size_t>(info(dtype).bits) / 8;
  LastPlaces result;
  for (std::size_t at = 0; at < x.size(); at += width) {
    const std::int64_t distance = place_of(x.data() + at, dtype) - place_of(y.data() + at, dtype);
    const std::int64_t size = distance < 0 ? -distance : distance;
    ++result.elements;
    result.different += size != 0 ? 1 : 0;
    result.largest = result.largest > size ? result.largest : size;
  }
  return result;
}

}  // namespace peft::testing
