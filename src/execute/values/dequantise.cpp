#include "execute/values/dequantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/float_formats.h"
#include "execute/values/element.h"
#include "gguf/types/block_formats.h"

namespace peft::execution {
namespace {

std::array<float, 256> fp8_values(Dtype dtype) {
  std::array<float, 256> values{};
  for (unsigned code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::byte>(code);
    values[code] = static_cast<float>(load_element(dtype, &byte));
  }
  return values;
}

const std::array<float, 256>& table_of(Dtype dtype) {
  static const std::array<std::array<float, 256>, 4> tables = {fp8_values(Dtype::f8_e4m3), fp8_values(Dtype::f8_e5m2),
                                                               fp8_values(Dtype::f8_e4m3fnuz),
                                                               fp8_values(Dtype::f8_e5m2fnuz)};
  switch (dtype) {
    case Dtype::f8_e4m3:
      return tables[0];
    case Dtype::f8_e5m2:
      return tables[1];
    case Dtype::f8_e4m3fnuz:
      return tables[2];
    default:
      return tables[3];
  }
}

const std::array<float, 16>& mxfp4_values() {
  static const std::array<float, 16> values = [] {
    std::array<float, 16> all{};
    for (unsigned code = 0; code < all.size(); ++code) all[code] = e2m1_to_float(code);
    return all;
  }();
  return values;
}

// The scale of a cell, as two factors. For mxfp4, 2^-127 .. 2^128 is more than fp32 holds, while the values may still
// fit.
struct CellScale {
  float first = 1, second = 1;
};
CellScale scale_at(const Codes& codes, std::int64_t row, std::int64_t col) {
  const std::byte* at = codes.grid + row / codes.cell_rows * codes.grid_row + col / codes.cell_cols * codes.grid_col;
  if (codes.kind == Scales::Kind::mxfp4) {
    const int exponent = std::to_integer<int>(*at) - 127;
    return {std::ldexp(1.0F, exponent / 2), std::ldexp(1.0F, exponent - exponent / 2)};
  }
  if (codes.grid_dtype == Dtype::f8_e8m0)
    return {static_cast<float>(e8m0_to_double(std::to_integer<std::uint8_t>(*at))), 1};
  return {static_cast<float>(load_element(codes.grid_dtype, at)), 1};
}

float code_at(const Codes& codes, const std::array<float, 256>* fp8, std::int64_t code) {
  if (fp8 != nullptr) return (*fp8)[std::to_integer<unsigned>(codes.data[code])];
  const auto both = std::to_integer<unsigned>(codes.data[code / 2]);
  return mxfp4_values()[code % 2 == 0 ? both & 15u : both >> 4];
}

// Decodes codes that follow each other in one row of the code matrix.
template <class Store>
void decode_run(const Codes& codes, std::int64_t first, std::int64_t count, const Store& store) {
  const auto* fp8 = codes.kind == Scales::Kind::fp8 ? &table_of(codes.dtype) : nullptr;
  const std::int64_t row = first / codes.width;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t col = first % codes.width + done;
    const std::int64_t end = std::min(count, done + codes.cell_cols - col % codes.cell_cols);
    const CellScale scale = scale_at(codes, row, col);
    for (; done < end; ++done) store(done, code_at(codes, fp8, first + done) * scale.first * scale.second);
  }
}

// Whether `count` codes with the given stride lie in one row of the code matrix.
bool in_one_row(const Codes& codes, std::int64_t first, std::int64_t stride, std::int64_t count) {
  return stride == 1 && first % codes.width + count <= codes.width;
}

// Unpacks elements of a GGUF tensor that follow each other. Rows are whole blocks, so that blocks follow each other
// where elements do.
void unpack_run(const Codes& codes, std::int64_t first, std::int64_t count, float* out) {
  const gguf::GgmlTypeInfo& sizes = gguf::info(codes.type);
  const auto bytes = static_cast<std::int64_t>(sizes.block_bytes);
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t block = (first + done) / sizes.block, begin = (first + done) % sizes.block;
    const std::byte* from = codes.data + block * bytes;
    std::int64_t some = (count - done) / sizes.block * sizes.block;
    if (begin == 0 && some != 0) {
      gguf::unpack_blocks(codes.type, {from, static_cast<std::size_t>(some / sizes.block * bytes)}, out + done);
    } else {
      float values[gguf::kMaxBlock];
      gguf::unpack_blocks(codes.type, {from, static_cast<std::size_t>(bytes)}, values);
      some = std::min(count - done, sizes.block - begin);
      std::copy_n(values + begin, some, out + done);
    }
    done += some;
  }
}

void unpack(const Codes& codes, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, float* out,
            std::int64_t pitch) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t first = codes.offset + (row + i) * codes.row_stride + col * codes.col_stride;
    if (codes.col_stride == 1) {
      unpack_run(codes, first, cols, out + i * pitch);
      continue;
    }
    for (std::int64_t j = 0; j < cols; ++j) unpack_run(codes, first + j * codes.col_stride, 1, out + i * pitch + j);
  }
}

double quantised_value(const Plan& plan, const Block& block, std::int64_t code) {
  const Scales& scales = *block.scales;
  if (scales.kind == Scales::Kind::ggml) {
    float value = 0;
    unpack_run(codes_of(plan, block), code, 1, &value);
    return static_cast<double>(value);
  }
  const std::int64_t row = code / scales.width / scales.cell_rows, col = code % scales.width / scales.cell_cols;
  const View& view = block.source;
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& codes = file.tensors()[view.tensor];
  const std::byte* bytes = file.bytes(codes).data();
  if (scales.kind == Scales::Kind::mxfp4) {
    const unsigned both = std::to_integer<unsigned>(bytes[code / 2]);
    const auto exponent = std::to_integer<int>(
        first_byte(plan, scales.grid)[row * scales.grid.row_stride + col * scales.grid.col_stride]);
    return std::ldexp(static_cast<double>(e2m1_to_float(code % 2 == 0 ? both & 15u : both >> 4)), exponent - 127);
  }
  const auto scale = static_cast<float>(value_at(plan, scales.grid, row, col));
  return static_cast<double>(static_cast<float>(load_element(codes.dtype, bytes + code)) * scale);
}

}  // namespace

Codes codes_of(const Plan& plan, const Block& block) {
  const Scales& scales = *block.scales;
  const View& view = block.source;
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& tensor = file.tensors()[view.tensor];
  Codes codes;
  codes.kind = scales.kind;
  codes.dtype = tensor.dtype;
  if (scales.kind == Scales::Kind::ggml) {
    codes.type = *gguf::parse_ggml_type(tensor.dtype_name);  // plan::check() has looked
    codes.data = file.bytes(tensor).data();
    codes.offset = view.offset, codes.row_stride = view.row_stride, codes.col_stride = view.col_stride;
    return codes;
  }
  codes.grid_dtype = plan.sources[scales.grid.source]->tensors()[scales.grid.tensor].dtype;
  codes.data = file.bytes(tensor).data();
  codes.grid = first_byte(plan, scales.grid);
  codes.offset = view.offset;
  codes.row_stride = view.row_stride;
  codes.col_stride = view.col_stride;
  codes.width = scales.width;
  codes.cell_rows = scales.cell_rows;
  codes.cell_cols = scales.cell_cols;
  codes.grid_row = scales.grid.row_stride * element_size(codes.grid_dtype);
  codes.grid_col = scales.grid.col_stride * element_size(codes.grid_dtype);
  return codes;
}

void dequantise(const Codes& codes, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                float* out, std::int64_t pitch) {
  if (codes.kind == Scales::Kind::ggml) return unpack(codes, row, rows, col, cols, out, pitch);
  const auto code = [&](std::int64_t i, std::int64_t j) {
    return codes.offset + (row + i) * codes.row_stride + (col + j) * codes.col_stride;
  };
  if (codes.col_stride == 1) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols;) {
        const std::int64_t some = std::min(cols - j, codes.width - code(i, j) % codes.width);
        decode_run(codes, code(i, j), some, [&](std::int64_t n, float value) { out[i * pitch + j + n] = value; });
        j += some;
      }
    }
    return;
  }
  for (std::int64_t j = 0; j < cols; ++j) {
    if (in_one_row(codes, code(0, j), codes.row_stride, rows)) {  // stored transposed: runs go down
      decode_run(codes, code(0, j), rows, [&](std::int64_t n, float value) { out[n * pitch + j] = value; });
      continue;
    }
    for (std::int64_t i = 0; i < rows; ++i)
      decode_run(codes, code(i, j), 1, [&](std::int64_t, float value) { out[i * pitch + j] = value; });
  }
}

double value_at(const Plan& plan, const Block& block, std::int64_t row, std::int64_t col) {
  const View& view = block.source;
  if (!block.scales) return value_at(plan, view, row, col) * block.scale;
  return quantised_value(plan, block, view.offset + row * view.row_stride + col * view.col_stride);
}

}  // namespace peft::execution
