#include "execute/values/element.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/float_formats.h"

namespace peft::execution {
namespace {

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

template <class Format>
bool store_small(double value, std::byte* to) {
  const std::uint32_t bits = Format::encode(value);
  store(to, static_cast<std::uint8_t>(bits));
  return !std::isfinite(value) || std::isfinite(Format::decode(bits));
}

bool convert_any(Dtype from_dtype, const std::byte* from, std::size_t count, double scale, Dtype to_dtype,
                 std::byte* to) {
  const std::size_t from_size = static_cast<std::size_t>(info(from_dtype).bits) / 8;
  const std::size_t to_size = static_cast<std::size_t>(info(to_dtype).bits) / 8;
  bool fits = true;
  for (std::size_t i = 0; i < count; ++i) {
    fits &= store_element(to_dtype, load_element(from_dtype, from + i * from_size) * scale, to + i * to_size);
  }
  return fits;
}

// The most frequent casts. Same bits as the general form.
void widen_bf16(const std::byte* from, std::size_t count, std::byte* to) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(load<std::uint16_t>(from + 2 * i)) << 16;
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    store(to + 4 * i, nan ? (bits & 0x80000000u) | 0x7FC00000u : bits);
  }
}

bool narrow_to_bf16(const std::byte* from, std::size_t count, std::byte* to) {
  std::uint32_t overflows = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto bits = load<std::uint32_t>(from + 4 * i);
    const std::uint16_t rounded = float_to_bf16(std::bit_cast<float>(bits));
    overflows |= static_cast<std::uint32_t>((rounded & 0x7FFFu) == 0x7F80u) &
                 static_cast<std::uint32_t>((bits & 0x7FFFFFFFu) != 0x7F800000u);
    store(to + 2 * i, rounded);
  }
  return overflows == 0;
}

}  // namespace

std::int64_t element_size(Dtype dtype) { return info(dtype).bits / 8; }

const std::byte* first_byte(const Plan& plan, const View& view) {
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& tensor = file.tensors()[view.tensor];
  return file.bytes(tensor).data() + view.offset * element_size(tensor.dtype);
}

double load_element(Dtype dtype, const std::byte* from) {
  switch (dtype) {
    case Dtype::f64:
      return load<double>(from);
    case Dtype::f32:
      return static_cast<double>(load<float>(from));
    case Dtype::bf16:
      return BFloat16::decode(load<std::uint16_t>(from));
    case Dtype::f16:
      return Float16::decode(load<std::uint16_t>(from));
    case Dtype::f8_e5m2:
      return Float8E5M2::decode(load<std::uint8_t>(from));
    case Dtype::f8_e4m3:
      return Float8E4M3::decode(load<std::uint8_t>(from));
    case Dtype::f8_e5m2fnuz:
      return Float8E5M2Fnuz::decode(load<std::uint8_t>(from));
    case Dtype::f8_e4m3fnuz:
      return Float8E4M3Fnuz::decode(load<std::uint8_t>(from));
    default:
      return 0;  // plan::check() refuses other types
  }
}

bool store_element(Dtype dtype, double value, std::byte* to) {
  switch (dtype) {
    case Dtype::f64:
      store(to, value);
      return true;
    case Dtype::f32: {
      const auto rounded = static_cast<float>(value);
      store(to, rounded);
      return std::isfinite(rounded) || !std::isfinite(value);
    }
    case Dtype::bf16: {
      const std::uint16_t bits = double_to_bf16(value);
      store(to, bits);
      return (bits & 0x7F80u) != 0x7F80u || !std::isfinite(value);
    }
    case Dtype::f16: {
      const std::uint16_t bits = double_to_f16(value);
      store(to, bits);
      return (bits & 0x7C00u) != 0x7C00u || !std::isfinite(value);
    }
    case Dtype::f8_e5m2:
      return store_small<Float8E5M2>(value, to);
    case Dtype::f8_e4m3:
      return store_small<Float8E4M3>(value, to);
    case Dtype::f8_e5m2fnuz:
      return store_small<Float8E5M2Fnuz>(value, to);
    case Dtype::f8_e4m3fnuz:
      return store_small<Float8E4M3Fnuz>(value, to);
    default:
      return false;
  }
}

bool convert_row(Dtype from_dtype, const std::byte* from, std::size_t count, double scale, Dtype to_dtype,
                 std::byte* to) {
  if (scale == 1 && from_dtype == Dtype::bf16 && to_dtype == Dtype::f32) return widen_bf16(from, count, to), true;
  if (scale == 1 && from_dtype == Dtype::f32 && to_dtype == Dtype::bf16) return narrow_to_bf16(from, count, to);
  return convert_any(from_dtype, from, count, scale, to_dtype, to);
}

double value_at(const Plan& plan, const View& view, std::int64_t row, std::int64_t col) {
  const Dtype dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  const std::byte* element =
      first_byte(plan, view) + (row * view.row_stride + col * view.col_stride) * element_size(dtype);
  if (dtype == Dtype::f8_e8m0) return e8m0_to_double(std::to_integer<std::uint8_t>(*element));
  return load_element(dtype, element);
}

double rounded_to(Dtype dtype, double value) {
  std::byte bytes[8];
  store_element(dtype, value, bytes);
  return load_element(dtype, bytes);
}

}  // namespace peft::execution
