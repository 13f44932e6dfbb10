#include "execute/value.h"

#include <array>
#include <cmath>

#include "base/float_formats.h"
#include "execute/element.h"
#include "execute/op.h"

namespace peft::execution {
namespace {

double quantised_value(const Plan& plan, const Block& block, std::int64_t code) {
  const Scales& scales = *block.scales;
  const std::int64_t row = code / scales.width / scales.cell_rows, col = code % scales.width / scales.cell_cols;
  const View& view = block.source;
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& codes = file.tensors()[view.tensor];
  const std::byte* bytes = file.bytes(codes).data();
  if (scales.kind == Scales::Kind::mxfp4) {
    const unsigned both = std::to_integer<unsigned>(bytes[code / 2]);
    const auto exponent = std::to_integer<int>(
        first_byte(plan, scales.grid)[row * scales.grid.row_stride + col * scales.grid.col_stride]);
    return std::ldexp(static_cast<double>(mxfp4_value(code % 2 == 0 ? both & 15u : both >> 4)), exponent - 127);
  }
  const auto scale = static_cast<float>(value_at(plan, scales.grid, row, col));
  return static_cast<double>(static_cast<float>(load_element(codes.dtype, bytes + code)) * scale);
}

}  // namespace

float mxfp4_value(unsigned code) {
  static constexpr std::array<float, 8> kMagnitudes = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  return (code & 8u) != 0 ? -kMagnitudes[code & 7u] : kMagnitudes[code & 7u];
}

double value_at(const Plan& plan, const View& view, std::int64_t row, std::int64_t col) {
  const Dtype dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  const std::byte* element =
      first_byte(plan, view) + (row * view.row_stride + col * view.col_stride) * element_size(dtype);
  if (dtype == Dtype::f8_e8m0) return e8m0_to_double(std::to_integer<std::uint8_t>(*element));
  return load_element(dtype, element);
}

double value_at(const Plan& plan, const Block& block, std::int64_t row, std::int64_t col) {
  const View& view = block.source;
  if (!block.scales) return value_at(plan, view, row, col) * block.scale;
  return quantised_value(plan, block, view.offset + row * view.row_stride + col * view.col_stride);
}

double rounded_to(Dtype dtype, double value) {
  std::byte bytes[8];
  store_element(dtype, value, bytes);
  return load_element(dtype, bytes);
}

}  // namespace peft::execution
